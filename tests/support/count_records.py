"""Run by torchrun: which records does each rank train on in two epochs, and evaluate, with 0 and with 2 workers?"""

import itertools
import json
import sys
from pathlib import Path

import torch
from tiny import FLAGS

from aocr_torch.config import Config
from aocr_torch.data.loader import TrainBatchSampler, make_loader
from aocr_torch.model.ocr import AttentionOCR
from aocr_torch.training import ranks
from aocr_torch.training.evaluate import evaluate, open_dataset

if __name__ == "__main__":
    dataset_dir, out = sys.argv[1:]
    device = torch.device("cpu")
    with ranks.process_group(device):
        seen = {}
        for num_workers in (0, 2):
            config = Config().replace(
                **{**FLAGS, "dataset_dir": dataset_dir, "num_workers": num_workers, "batch_size": 2}
            )
            dataset = open_dataset(config, "train")
            sampler = TrainBatchSampler(len(dataset), 2, seed=3, rank=ranks.rank(), world_size=ranks.world_size())
            loader = make_loader(dataset, sampler, num_workers=num_workers)
            steps = -(-2 * len(dataset) // (2 * ranks.world_size()))
            trained = []
            for batch in itertools.islice(loader, steps):
                trained += list(zip(batch["position"].tolist(), batch["index"].tolist()))
            test = open_dataset(config, "test")
            torch.manual_seed(0)
            model = AttentionOCR(config.data, config.model, test.charset.size)
            evaluated: list[int] = []
            evaluation = evaluate(
                model, test, config, device, on_batch=lambda batch, _, to=evaluated: to.extend(batch["index"].tolist())
            )
            seen[num_workers] = {
                "trained": trained,
                "evaluated": evaluated,
                "counts": [evaluation.records, evaluation.evaluated, len(evaluation.skipped)],
                "results": evaluation.results,
            }
        Path(out, f"{ranks.rank()}.json").write_text(json.dumps(seen))
