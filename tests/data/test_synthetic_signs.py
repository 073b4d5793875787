"""The pictures of synthetic signs: every effect alone, their shares, fonts, plates, what a sign shows."""

import re
from dataclasses import fields, replace

import numpy as np
import pytest

from aocr_torch.data import synthetic_fonts, synthetic_signs, synthetic_views
from aocr_torch.data.charset import NULL, Charset
from aocr_torch.data.synthetic import PRESETS
from aocr_torch.data.synthetic_effects import PLATE_EFFECTS, SignEffects, SynthesisError
from aocr_torch.data.synthetic_fonts import FACES, SOURCE_SANS, Face, font, missing_characters
from aocr_torch.data.synthetic_plates import decide_look
from aocr_torch.data.synthetic_signs import draw_sign
from aocr_torch.data.synthetic_text import compose
from aocr_torch.data.synthetic_textures import KINDS, SIZE, surface
from aocr_torch.data.synthetic_views import decide_conditions

CLEAN = replace(SignEffects.off(), upper_case=1)
LONG = "Avenue de l'Abbé Martin d'Arc"


def generator(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def shown(text):
    """All the letters of a sign's name."""
    return " ".join("".join(run.text for run in line) for line in text.lines)


@pytest.mark.parametrize("preset", ["fsns", "demo"])
def test_the_picture_has_the_views_that_were_asked_for(preset):
    parameters = PRESETS[preset]
    effects = replace(parameters.effects, missing_views=0, noise_band=0)
    height, width, views = parameters.height, parameters.view_width, parameters.num_views
    picture, num_real = draw_sign(generator(), "Rue Ada", views, height, width, effects)
    assert num_real == views
    assert picture.shape == (height, views * width, 3)
    assert picture.dtype == np.uint8
    first, second = picture[:, :width].astype(int), picture[:, width : 2 * width].astype(int)
    assert np.abs(first - second).mean() > 2


def test_missing_views_are_uniform_noise():
    effects = replace(CLEAN, missing_views=1.0)
    picture, num_real = draw_sign(generator(2), "Rue Ada", 4, 60, 60, effects)
    assert 1 <= num_real < 4
    noise = picture[:, num_real * 60 :]
    assert noise.mean() == pytest.approx(127.5, abs=3)
    assert noise.std() == pytest.approx(255 / 12**0.5, abs=3)
    assert np.abs(np.diff(picture[:, : num_real * 60].astype(int), axis=1)).mean() < 20


def test_a_narrow_view_is_filled_with_noise_at_its_right():
    effects = replace(CLEAN, noise_band=0.5)
    bands = 0
    for seed in range(20):
        picture, _ = draw_sign(generator(seed), "Rue Ada", 1, 40, 60, effects)
        bands += np.abs(np.diff(picture[:, -4:].astype(int), axis=1)).mean() > 50
    assert 0 < bands < 12


def test_the_worst_of_everything_on_the_smallest_view_still_draws():
    worst = SignEffects(
        **{"condensed": 0.9, "margin": 0.4, "distance": 0.9, "shift": 1, "yaw": 70, "pitch": 60, "rotation": 45},
        **{"blur": 5, "low_resolution": 0.9, "light": 0.6, "tint": 0.5, "noise": 40, "noise_band": 0.5},
        **{"missing_views": 1, "max_lines": 4},
    )
    worst.check()
    for seed in range(30):
        picture, _ = draw_sign(generator(seed), "Rue de la Taillée", 3, 16, 16, worst)
        assert picture.shape == (16, 48, 3)


def test_difficulty_0_shows_the_same_clean_sign_in_the_middle():
    picture, num_real = draw_sign(generator(3), "Rue Ada", 2, 48, 96, SignEffects().scaled(0))
    assert num_real == 2
    blue = picture[:, :96, 2].astype(int) - picture[:, :96, 0] > 40
    rows, columns = np.nonzero(blue)
    assert abs(rows.min() + rows.max() - 47) <= 2
    assert abs(columns.min() + columns.max() - 95) <= 2


def test_long_names_are_broken_into_lines_and_accents_are_drawn():
    def ink(label, max_lines):
        picture, _ = draw_sign(generator(1), label, 1, 100, 300, replace(CLEAN, max_lines=max_lines, condensed=0))
        return picture.astype(int)

    assert np.abs(ink("Rue de la République", 1) - ink("Rue de la République", 3)).mean() > 5
    plain, accented = ink("Rue Eee", 1), ink("Rue Éêè", 1)
    assert np.abs(plain - accented).max() > 100


def test_case_follows_the_effects():
    def drawn(upper_case, mixed_case, label="Rue de l'Ile"):
        effects = replace(CLEAN, upper_case=upper_case, mixed_case=mixed_case, max_lines=1)
        return draw_sign(generator(5), label, 1, 60, 200, effects)[0]

    upper, mixed, title = drawn(1, 0), drawn(0, 1), drawn(0, 0)
    assert (upper != mixed).any()
    assert (mixed != title).any()
    assert (upper == drawn(0, 0, "RUE DE L'ILE")).all()
    assert (mixed == drawn(0, 0, "RUE de l'ILE")).all()


def test_a_missing_font_package_says_what_to_install(monkeypatch):
    face = Face("font-roboto", "Roboto-Bold.ttf")
    monkeypatch.setattr(synthetic_fonts, "find_spec", lambda name: None)
    synthetic_fonts._path.cache_clear()
    with pytest.raises(SynthesisError, match=r"need Roboto-Bold\.ttf .*: pip install font-roboto"):
        font(face, 17)
    synthetic_fonts._path.cache_clear()


@pytest.mark.parametrize("name", [field.name for field in fields(SignEffects)])
def test_every_effect_can_be_switched_on_alone(name):
    strongest = {"max_lines": 3, "missing_views": 1, "yaw": 40, "pitch": 30, "rotation": 20, "blur": 4, "noise": 20}
    without_it = replace(SignEffects.off(), max_lines=1 if name == "max_lines" else 3, posts=float(name == "brackets"))
    effects = replace(without_it, **{name: strongest.get(name, 0.4 if name in AMOUNTS else 1)})
    effects.check()
    views = 2 if name in ("missing_views", "useless_views", "cut") else 1
    pairs = [
        [draw_sign(generator(seed), LONG, views, 60, 90, chosen)[0] for chosen in (effects, without_it)]
        for seed in range(8)
    ]
    assert any((with_it != without).any() for with_it, without in pairs)


AMOUNTS = (
    "condensed",
    "spacing",
    "margin",
    "distance",
    "shift",
    "low_resolution",
    "light",
    "tint",
    "haze",
    "desaturation",
    "noise_band",
)


@pytest.mark.parametrize(
    ("name", "share", "is_darker"),
    [("night", 1, True), ("shadow", 1, True), ("glare", 1, False)],
)
def test_light_makes_a_view_darker_or_brighter(name, share, is_darker):
    pictures = {
        amount: np.mean(
            [draw_sign(generator(s), "Rue Ada", 1, 60, 90, replace(CLEAN, **{name: amount}))[0] for s in range(20)]
        )
        for amount in (0, share)
    }
    assert (pictures[share] < pictures[0] - 0.3) == is_darker
    assert (pictures[share] > pictures[0] + 0.3) != is_darker


@pytest.mark.parametrize("name", ["motion", "blur", "low_resolution"])
def test_unsharp_views_have_weaker_edges(name):
    def edges(effects):
        pictures = [draw_sign(generator(seed), LONG, 3, 80, 120, effects)[0].astype(int) for seed in range(12)]
        return np.mean([np.abs(np.diff(picture, axis=1)).mean() for picture in pictures])

    assert edges(replace(CLEAN, **{name: {"blur": 3, "low_resolution": 0.8}.get(name, 1)})) < 0.9 * edges(CLEAN)


def test_one_view_is_never_useless_nor_cut(monkeypatch):
    drawn = []

    def draw_view(rng, site, height, width, effects):
        drawn.append(effects)
        return synthetic_views.draw_view(rng, site, height, width, effects)

    monkeypatch.setattr(synthetic_signs, "draw_view", draw_view)
    for seed in range(20):
        draw_sign(generator(seed), "Rue Ada", 3, 48, 72, replace(CLEAN, useless_views=1, cut=1))
        assert sorted((effects.useless_views, effects.cut) for effects in drawn) == [(0, 0), (1, 1), (1, 1)]
        drawn.clear()


def test_a_sign_is_within_the_view_unless_it_is_cut():
    for seed in range(60):
        place = synthetic_views._place_corners
        (left, top), (right, bottom) = (
            edge(place(generator(seed), 1.6, 60, 90, SignEffects(), is_cut=False), axis=0) for edge in (np.min, np.max)
        )
        assert 0 <= left < right <= 90
        assert 0 <= top < bottom <= 60
        across = place(generator(seed), 1.6, 60, 90, SignEffects(), is_cut=True)[:, 0]
        hidden = max(-across.min(), across.max() - 90) / np.ptp(across)
        assert 0.02 <= hidden < 0.125 + 1e-9


def test_the_perspective_maps_a_views_corners_to_those_of_the_plate():
    corners = np.array([[3.0, 5.0], [40.0, 1.0], [44.0, 30.0], [1.0, 25.0]])
    a, b, c, d, e, f, g, h = synthetic_views._homography(corners, 20, 10)
    for (x, y), target in zip(corners, ((0, 0), (20, 0), (20, 10), (0, 10))):
        distance = g * x + h * y + 1
        assert ((a * x + b * y + c) / distance, (d * x + e * y + f) / distance) == pytest.approx(target, abs=1e-9)


def test_shares_are_honoured_by_what_a_sign_shows():
    effects, count, label = SignEffects(), 4000, "Avenue du Général Ada"
    rng = generator()
    texts = [compose(rng, label, effects) for _ in range(count)]
    found = {
        "town": np.mean([bool(text.header) for text in texts]),
        "coat_of_arms": np.mean([text.has_arms for text in texts]),
        "subtitle": np.mean([bool(text.subtitle) for text in texts]),
        "bilingual": np.mean([bool(text.second_name) for text in texts]),
        "abbreviated": np.mean(["général" not in shown(text).lower() for text in texts]),
        "small_capitals": np.mean([len(text.lines[-1]) > 1 for text in texts]),
        "upper_case": np.mean([len(text.lines[-1]) == 1 and shown(text).isupper() for text in texts]),
    }
    expected = {name: getattr(effects, name) for name in found}
    expected["town"] += effects.arrondissement
    assert found == pytest.approx(expected, abs=0.03)


def test_shares_are_honoured_by_plates_and_views():
    effects, count = SignEffects(), 4000
    rng = generator()
    looks = [decide_look(rng, effects) for _ in range(count)]
    found = {kind: np.mean([look.kind == kind for look in looks]) for kind in PLATE_EFFECTS}
    found["fixings"] = np.mean([look.has_fixings for look in looks])
    found["chips"] = np.mean([look.is_chipped for look in looks])
    found["wear"] = np.mean([look.is_worn for look in looks])
    found["rust"] = np.mean([look.is_rusty for look in looks])
    found["other_fonts"] = np.mean([look.face not in SOURCE_SANS for look in looks])
    views = [decide_conditions(rng, effects) for _ in range(count)]
    names = {"shadow": "has_shadow", "leaves": "has_leaves", "poles": "has_pole", "glare": "has_glare"}
    names.update({"motion": "is_moving", "jpeg": "is_jpeg", "useless_views": "is_useless"})
    names.update({"reflections": "has_reflection", "sharpened": "is_sharpened", "cut": "is_cut"})
    found.update({name: np.mean([getattr(view, field) for view in views]) for name, field in names.items()})
    assert found == pytest.approx({name: getattr(effects, name) for name in found}, abs=0.03)
    assert {look.face for look in looks} == set(FACES)


def test_a_sign_shows_the_label_and_more():
    rng = generator()
    plain = replace(SignEffects.off(), max_lines=4)
    for label in ("Rue de la Taillée", "Chemin du 8 Mai 1945", "Rue « Ada » £ 5"):
        assert shown(compose(rng, label, plain)) == label
    short = compose(rng, "Boulevard du Docteur Saint-Ada", replace(plain, abbreviated=1))
    assert re.fullmatch(r"(Bd|Boul\.|Bld) du Dr St[-. ]Ada", shown(short))
    capitals = compose(rng, "Rue d'Orléans", replace(plain, small_capitals=1))
    assert shown(capitals).replace("’", "'") == "RUE D'ORLÉANS"
    assert {run.size < 0.9 for line in capitals.lines for run in line if run.text != " "} == {True, False}
    assert len(compose(rng, "Avenue du Maréchal de Lattre de Tassigny", plain).lines) > 1


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.file)
def test_every_font_has_every_character(face):
    characters = "".join(c for _, c in Charset.fsns().lines if c != NULL)
    assert missing_characters(face, characters + characters.upper() + "–") == ""
    assert missing_characters(face, "中") == "中"
    assert abs(-font(face, 300).getbbox("H", anchor="ls")[1] - 0.66 * 300) <= 4


@pytest.mark.parametrize("kind", KINDS)
def test_surfaces_are_drawn_once_and_always_the_same(kind):
    first = np.asarray(surface(kind, 3))
    assert first.shape == (SIZE, SIZE, 3)
    assert first.std() > 2
    surface.cache_clear()
    assert (np.asarray(surface(kind, 3)) == first).all()
