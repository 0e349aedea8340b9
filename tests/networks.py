"""Small untrained networks, some that answer something, and a batch for them."""

from itertools import product

import torch

from willis.models.head import Head
from willis.models.network import Batch, NetworkConfig, TrimodalNetwork
from willis.models.table import FeatureColumn

SEQUENCES = ("dwi", "adc", "flair")
SHAPE = (22, 26, 10)
PATTERNS = [pattern for pattern in product([False, True], repeat=3) if any(pattern)]
COLUMNS = (FeatureColumn(name="age", mean=70, sd=13), FeatureColumn(name="sex", level="M"))


def network_with_opinions(config: NetworkConfig) -> TrimodalNetwork:
    """A network as after some training: what starts at zero, and answers the prevalence, no longer is."""
    network = TrimodalNetwork(config)
    for parameter in network.roads.parameters():
        parameter.data.normal_(std=config.width**-0.5)
    for module in network.modules():
        if isinstance(module, Head):
            module.logit.weight.data.normal_(std=config.contrast_width**-0.5)
    return network


def small_config(**changes: object) -> NetworkConfig:
    """Of a network that reads everything, but for what is changed."""
    values = {
        "sequences": SEQUENCES, "shape": SHAPE, "fact_columns": COLUMNS[:1], "table_columns": COLUMNS,
        "text_encoder": "none", "width": 32, "contrast_width": 16, "dropout": 0.0,
    }  # fmt: skip
    return NetworkConfig.model_validate(values | changes)


def small_batch(present: list[tuple[bool, ...]], planes: bool = False) -> Batch:
    """A row per pattern of presence, its fields drawn at random."""
    torch.manual_seed(1)
    n = len(present)
    return Batch(
        volume=torch.randint(0, 256, (n, 3, *SHAPE), dtype=torch.uint8),
        sequence_present=torch.ones(n, 3, dtype=torch.bool),
        planes=torch.randint(0, 256, (n, 3, 96, 96), dtype=torch.uint8) if planes else None,
        planes_present=torch.arange(n) % 2 == 0,
        facts=torch.randn(n, 1) + 70,
        table=torch.stack([torch.randn(n) * 10 + 70, torch.full((n,), torch.nan)], dim=1),
        text=torch.randn(n, 384),
        modality_present=torch.tensor(present),
        outcome=(torch.arange(n) % 2).float(),
        grade=torch.tensor([0.0, 3.0, 1.0, 4.0, 2.0, 6.0, torch.nan]).repeat(n)[:n],
        weight=torch.ones(n),
        text_tokens=torch.randn(n, 9, 384).half(),
        text_real=torch.arange(9) < torch.arange(n)[:, None] % 8 + 2,
    )
