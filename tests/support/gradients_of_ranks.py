"""Run by torchrun: the gradients of one training step in float64, over the same global batch on any number of ranks.

`gradients_of_ranks.py DATASET OUT.pth GLOBAL_BATCH apart|synchronised|frozen`: what BatchNorm does with its statistics.
"""

import sys

import torch
from tiny import FLAGS

from aocr_torch.config import Config
from aocr_torch.data.loader import TrainBatchSampler
from aocr_torch.training import ranks
from aocr_torch.training.evaluate import open_dataset
from aocr_torch.training.state import Training


def main(dataset_dir: str, out: str, global_batch: str, statistics: str) -> None:
    device = torch.device("cpu")
    with ranks.process_group(device):
        config = Config().replace(
            **{
                **FLAGS,
                "dataset_dir": dataset_dir,
                "batch_size": int(global_batch) // ranks.world_size(),
                "use_augment_input": False,
                "clip_gradient_norm": 0.0,
                "sync_batch_norm": statistics == "synchronised",
            }
        )
        dataset = open_dataset(config, "train")
        sampler = TrainBatchSampler(
            len(dataset), config.data.batch_size, seed=0, rank=ranks.rank(), world_size=ranks.world_size()
        )
        batch = dataset.batch(next(iter(sampler)))
        training = Training(config, dataset.charset, device, len(dataset))
        training.model.double()
        float32_views = training.views
        training.views = lambda *arguments, **options: float32_views(*arguments, **options).double()
        if statistics == "frozen":
            for module in training.model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
                    module.train = lambda mode=True, module=module: module
        training.distribute()
        training.train_step([batch])
        if ranks.is_main():
            gradients = {name: p.grad for name, p in training.model.named_parameters() if p.requires_grad}
            torch.save({"gradients": gradients, "buffers": dict(training.model.named_buffers())}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
