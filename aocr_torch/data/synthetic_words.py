"""The words that French street names are made of. A word that stands several times is drawn as often."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


TYPES = (
    *("Rue",) * 340,
    *("Avenue", "Chemin", "Allée", "Impasse") * 32,
    *("Place", "Boulevard", "Route") * 18,
    *("Square", "Passage") * 6,
    *("Quai", "Cours", "Villa", "Cité", "Sentier", "Ruelle", "Résidence", "Lotissement", "Hameau", "Clos", "Cour") * 3,
    *_words(
        "Rond-Point Esplanade Montée Venelle Promenade Traverse Faubourg Voie Sente Parvis Mail Côte Pont Rampe Parc "
        "Galerie Escalier Placette Levée Domaine Quartier Carrefour Porte Terrasse Jardin Chaussée Traboule Contour "
        "Drève Corniche Passerelle Mas Draille"
    ),
)

MONTHS = _words("Janvier Février Mars Avril Mai Juin Juillet Août Septembre Octobre Novembre Décembre")
REMEMBERED_DAYS = _phrases("11 Novembre 1918|8 Mai 1945|19 Mars 1962|14 Juillet|4 Septembre|1er Mai|18 Juin 1940")

FIRST_NAMES = _words(
    "Jean Pierre Paul Louis Henri Émile Victor Jules André René François Joséphine Marie Anne Hélène Irène Claude "
    "Gérard Honoré Frédéric Agnès Zoé Noël Édouard Gaël Inès Léon Yves Albert Alfred Aristide Auguste Benoît Camille "
    "Charles Denis Edmond Élisée Ernest Eugène Fernand Gabriel Gaston Georges Germaine Gustave Guy Hector Hippolyte "
    "Jacques Jeanne Joseph Lucie Lucien Marc Marcel Marguerite Maurice Max Michel Nicolas Olympe Philippe Raymond "
    "Robert Roger Simone Théophile Thomas William Xavier Yvonne Jean-Baptiste Jean-Jacques Marie-Thérèse Pierre-Paul "
    "Jean-François Anne-Marie Marc-Antoine"
)
PERSONS = _phrases(
    "Victor Hugo|Jean Jaurès|Émile Zola|Jules Ferry|Louis Pasteur|Pasteur|Voltaire|Gambetta|Molière|Racine|Corneille|"
    "Jean Moulin|Léon Blum|Pierre Curie|Pierre et Marie Curie|Marie Curie|Georges Clemenceau|Aristide Briand|"
    "Jeanne d'Arc|Gabriel Péri|Marcel Pagnol|Paul Verlaine|Arthur Rimbaud|Charles Baudelaire|Alphonse Daudet|"
    "Alfred de Musset|Alfred de Vigny|Honoré de Balzac|Guy de Maupassant|Jean de la Fontaine|Jean-Jacques Rousseau|"
    "Antoine de Saint-Exupéry|Claude Debussy|Hector Berlioz|Maurice Ravel|Georges Bizet|Camille Saint-Saëns|"
    "Auguste Renoir|Claude Monet|Paul Cézanne|Vincent Van Gogh|Henri Matisse|Salvador Allende|Nelson Mandela|"
    "Martin Luther King|John Fitzgerald Kennedy|Albert Camus|Jean Mermoz|Guynemer|Roland Garros|Blériot|Vauban|"
    "Colbert|Richelieu|Lamartine|Chateaubriand|La Fayette|Mirabeau|Danton|Robespierre|Carnot|Kléber|Ampère|Lavoisier|"
    "Denis Papin|Parmentier|Olivier de Serres|Descartes|Montaigne|Rabelais|Ronsard|du Bellay|Simone Veil|"
    "Olympe de Gouges|Louise Michel|George Sand|Colette|Édith Piaf|Georges Brassens|Jacques Brel|Yves Montand"
)
TITLES = _phrases(
    "du Général|du Maréchal|du Docteur|du Président|du Colonel|de l'Abbé|du Capitaine|du Curé|du Commandant|"
    "du Lieutenant|du Professeur|de l'Amiral|du Chanoine|de Monseigneur|du Comte|du Marquis|du Baron|du Maire|"
    "de Maître|du Père|de Sœur|du Sergent|de l'Ingénieur|du Chevalier|de la Duchesse|de Madame|du Sénateur"
)
HEROES = _phrases(
    "du Général de Gaulle|du Général Leclerc|du Maréchal Foch|du Maréchal Joffre|du Maréchal Leclerc|"
    "du Maréchal de Lattre de Tassigny|du Président Wilson|du Président Kennedy|du Docteur Roux|du Docteur Schweitzer|"
    "du Colonel Fabien|de l'Abbé Grégoire|de l'Abbé Pierre|du Capitaine Dreyfus|du Chevalier de la Barre"
)
KINGS = _phrases(
    "Louis XIV|Louis XVI|Henri IV|François 1er|Charles V|Charles VII|Napoléon III|Jean XXIII|Philippe VI|Louis IX"
)
SURNAMES = _words(
    "Martin Bernard Dubois Thomas Robert Richard Petit Durand Leroy Moreau Simon Laurent Lefebvre Michel Garcia David "
    "Bertrand Roux Vincent Fournier Morel Girard André Lefèvre Mercier Dupont Lambert Bonnet François Martinez Legrand "
    "Garnier Faure Rousseau Blanc Guérin Muller Henry Roussel Nicolas Perrin Morin Mathieu Clément Gauthier Dumont "
    "Lopez Fontaine Chevalier Robin Masson Sanchez Gérard Nguyen Boyer Denis Lemaire Duval Joly Gautier Roger Roche "
    "Roy Noël Meyer Lucas Meunier Jean Perez Marchand Dufour Blanchard Marie Barbier Brun Dumas Brunet Schmitt Leroux "
    "Colas Fabre Renard Arnaud Rolland Caron Aubert Giraud Leclercq Vidal Bourgeois Renaud Lemoine Picard Gaillard "
    "Philippe Leclerc Lacroix Fernandez Baron Rivière Olivier Bailly Charpentier Moulin Berger Rey Adam Guillot Benoît "
    "Collet Prévost Huet Vasseur Carpentier Perrot Hubert Dupuis Klein Besson Weber Lefort Marty Lesage Boucher Legall "
    "Deschamps Charrier Poirier Guillaume Gay Langlois Cordier Jacob Germain Fleury Barre Tessier Humbert Chauvin "
    "Lebrun Hamel Delaunay Collin Julien Pichon Perret Bouchet Leblanc Laporte Delattre Mallet Gilbert Maillard "
    "Coulon Gros Bouvier Maréchal Bertin Jacquet Camus Lebon Fischer Pelletier Hervé Besnard Cousin Ferrand Marion "
    "Guichard Verdier Millet Delorme Monnier Ledoux Chevallier Allard Grosjean Thibault Buisson Weiss Michaud Briand "
    "Tanguy Kerautret Legoff Guéguen Etcheverry Haristoy Bianchi Casanova Luciani Schneider Zimmermann Wagner Keller "
    "Vandamme Desmet Delcroix Dewaele Hoarau Payet Grondin Jouve Chabert Reynaud Peyre Cazenave Lafitte Castaing "
    "Labarthe Darrieux Quintard Yvetot Wallon Crozet Fayolle Vaillant Thévenin Boisson Chatelain Déjean Évrard Ollivier"
)
SAINTS = _words(
    "Martin Denis Jacques Michel Étienne Honoré Rémy Éloi Gilles Clément Félix Léger Côme Priest Cyr Pierre Paul Jean "
    "Georges Laurent Nicolas Vincent Germain Antoine Roch Maur Médard Sulpice Hilaire Aubin Malo Brieuc Marc Louis "
    "Exupéry Yrieix Maclou Gervais Symphorien"
)
SAINTES = _words("Anne Catherine Marthe Geneviève Odile Cécile Eugénie Foy Marguerite Barbe Agathe Thérèse Radegonde")

# What takes "de la", "du", "de l'", "des": places in town, in the country, trees, flowers, birds, beasts, crafts.
FEMININE = _words(
    "Gare Mairie République Paix Liberté Fraternité Poste Halle Fontaine Forêt Vallée Rivière Plage Croix Chapelle "
    "Ferme Prairie Source Colline Plaine Garenne Carrière Tour Tuilerie Verrerie Justice Résistance Libération "
    "Victoire Treille Combe Butte Falaise Lande Grange Métairie Chênaie Roseraie Cerisaie Bergerie Manufacture "
    "Distillerie Scierie Sablière Glacière Vierge Concorde Convention Bastille Cathédrale Citadelle Commanderie "
    "Corderie Monnaie Musique Digue Noë Planche Pointe Saulaie Huchette Vigne Verdure Varenne Jonquière Bourse "
    "Bibliothèque Gendarmerie Pompe"
)
MASCULINE = _words(
    "Château Moulin Stade Bois Lac Pont Port Phare Puits Marché Pressoir Cimetière Souvenir Maquis Soleil Lavoir Four "
    "Collège Lycée Théâtre Musée Palais Parc Jardin Clos Coteau Ruisseau Gué Bac Canal Verger Vallon Plateau Calvaire "
    "Prieuré Couvent Presbytère Donjon Rempart Faubourg Bourg Village Hameau Cèdre Chêne Tilleul Noyer Mûrier Houx "
    "Rossignol Héron Coq Cerf Lièvre Renard Loup Dauphin Tramway Viaduc Dragon Temple Progrès Travail Champ Pré Pâtis "
    "Bocage Bélier Capucin Chaudron Cloître Dôme Fossé Gué Hêtre Juge Kiosque Levant Maïs Nord Pêcher Quai Roc Sud Val"
)
ELIDED = _words(
    "Église Hôpital Étang Île Océan Europe Avenir Aqueduc Orme Abbaye Abreuvoir Industrie Indépendance Égalité Union "
    "Espérance Aurore Horloge Hôtel Oratoire Ancre Arsenal Atelier Aérodrome Écluse École Érable Olivier Amandier "
    "Aigle Alouette Hirondelle Écureuil Hermitage Enclos Yser Artois Orangerie Observatoire Usine Arquebuse Évêché"
)
PLURAL = _words(
    "Lilas Roses Tilleuls Chênes Érables Hêtres Pins Acacias Platanes Cèdres Genêts Bruyères Hirondelles Rossignols "
    "Mésanges Alouettes Canards Manufactures Tanneurs Forgerons Potiers Vignes Pêcheurs Dunes Frères Sœurs Martyrs "
    "Maçons Écoles Prés Marronniers Peupliers Bouleaux Saules Ormes Frênes Noisetiers Cerisiers Pommiers Poiriers "
    "Amandiers Oliviers Mimosas Glycines Iris Jonquilles Violettes Coquelicots Bleuets Primevères Orchidées Capucines "
    "Jacinthes Camélias Hortensias Églantines Pâquerettes Tulipes Fauvettes Pinsons Bouvreuils Chardonnerets "
    "Tourterelles Mouettes Goélands Cormorans Cygnes Hérons Sarcelles Bécasses Perdrix Grives Merles Martinets "
    "Loriots Écureuils Biches Chevreuils Abeilles Papillons Cigales Tisserands Drapiers Meuniers Boulangers Bouchers "
    "Charpentiers Tonneliers Vanniers Couteliers Orfèvres Imprimeurs Ferronniers Vignerons Bergers Bûcherons "
    "Mariniers Carriers Mineurs Artisans Cordeliers Jacobins Carmes Ursulines Augustins Capucins Dominicains Moines "
    "Templiers Chartreux Remparts Fossés Halles Arènes Thermes Arts Sports Déportés Fusillés Poilus Combattants "
    "Coteaux Jardins Sources Fontaines Vergers Champs Sapins Genévriers Fougères Ajoncs Myrtilles Groseilliers "
    "Framboisiers Quatre-Vents Chevaliers Marins Filles Filatures Ânes"
)
ADJECTIVES = {  # before the noun
    "feminine": _words("Grande Petite Vieille Belle Haute Basse Neuve"),
    "masculine": _words("Grand Petit Vieux Haut Bas Bon Gros Nouveau"),
    "plural": _words("Vieux Deux Trois Quatre Cinq Sept Neuf Douze"),
}
QUALIFIERS = {  # after the noun
    "feminine": _words("Verte Blanche Rouge Noire Creuse Ronde Fleurie Perdue Royale Brûlée Percée Dorée"),
    "masculine": _words("Vert Blanc Rouge Noir Creux Rond Fleuri Perdu Royal Brûlé Joli Doré"),
    "elided": _words("Rouge Sauvage Neuf Jaune"),
    "plural": _words("Rouges Sauvages Jaunes"),
}
TOWNS = _words(
    "Paris Lyon Marseille Bordeaux Toulouse Nantes Strasbourg Lille Rennes Reims Dijon Grenoble Angers Nîmes Besançon "
    "Limoges Metz Perpignan Caen Rouen Nancy Tours Poitiers Bâle Genève Londres Rome Berlin Varsovie Madrid Lisbonne "
    "Bruxelles Vienne Prague Constantinople Rivoli Turin Milan Bayonne Brest Cherbourg Dunkerque Calais Laon Sens "
    "Chartres Mâcon Nevers Vichy Beauvais L'Haÿ-les-Roses Meudon Saint-Denis Aix-en-Provence Châlons-sur-Marne "
    "Bar-le-Duc"
)
BATTLES = _words(
    "Verdun Austerlitz Wagram Valmy Marengo Fleurus Lodi Arcole Iéna Friedland Solférino Magenta Sébastopol Alma "
    "Malakoff Bouvines Fontenoy Rocroi Jemmapes Aboukir Eylau Narvik Bir-Hakeim Stalingrad Dunkerque Sedan Douaumont "
    "Craonne"
)
REGIONS = _phrases(
    "d'Alsace|de Lorraine|de Bretagne|de Normandie|de Picardie|de Bourgogne|de Champagne|de Provence|du Languedoc|"
    "d'Auvergne|du Limousin|du Poitou|d'Anjou|de Touraine|du Berry|de Savoie|de Gascogne|du Béarn|de Corse|d'Artois|"
    "des Flandres|de Franche-Comté|des Pyrénées|des Alpes|du Jura|des Vosges|des Cévennes|d'Italie|d'Espagne|d'Orléans"
)
RIVERS = _words("Seine Loire Marne Saône Oise Meuse Mer Vienne Sarthe Orne Aube Isère Dordogne Garonne Loing Yonne")
MEMBERS = _phrases(
    "Régiment d'Infanterie|Bataillon de Chasseurs|Division Blindée|Régiment de Dragons|Armée|Zouaves|Cuirassiers"
)
ENDS = _phrases(
    "Prolongée|Prolongé|Nord|Sud|Est|Ouest|Inférieur|Supérieure|Privée|Bis|Basse|Haute|Ancienne|Centre|Plage|Résidence"
)
WITH_OTHER_PREPOSITIONS = _phrases(
    "aux Ânes|sous l'Orme|sous les Vignes|aux Fleurs|aux Moines|entre les Deux Eaux|à la Reine|au Pain|en Colombier|"
    "Entre Deux Villes|sur le Lac|devant la Croix|derrière l'Église|du Bout du Monde|du Coin du Bois|au Loup|"
    "des Champs aux Oiseaux|du Bord de l'Eau|du Clos de la Tour|de la Porte de Saint-Cloud|du Pont de Pierre|"
    "de la Croix de Fer|du Four à Chaux|du Moulin à Vent|de la Maison d'École|du Vœu|de l'Œuvre|de Nicæa|"
    "du Cœur Joyeux"
)

# Letters of invented words.
FIRST_ONSETS = (
    *_words("b c d f g l m n p r s t v") * 3,
    *_words("h j k q w x y z bl br ch cl cr dr fl fr gl gr ph pl pr qu th tr vr"),
)
ONSETS = (*FIRST_ONSETS, *_words("ll mm nn rr ss tt gn ç"))
VOWELS = (
    *_words("a e i o u") * 6,
    *_words("é ai au ou on an en in eau") * 3,
    *_words("è è ê â ei eu ie oi un ain y"),
)
RARE_VOWELS = _words("â à î ô û ù ë ï ü œ œu ÿ ä ñ æ ê oui")
CODAS = _words("c d f l l l ll m n n n r r rt s s s se sse st t t tte x y z ck ze ff gne lle lt nd ns nt rd rg rs tz w")
VOWELS_AT_START = "AEIOUYÉÈÊÂÀÎÔÛÙËÏÜŒÄÆ"
