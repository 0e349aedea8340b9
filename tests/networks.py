"""Untrained networks that answer something."""

from willis.models.head import Head
from willis.models.network import NetworkConfig, TrimodalNetwork


def network_with_opinions(config: NetworkConfig) -> TrimodalNetwork:
    """A network as after some training: what starts at zero, and answers the prevalence, no longer is."""
    network = TrimodalNetwork(config)
    for parameter in network.roads.parameters():
        parameter.data.normal_(std=config.width**-0.5)
    for module in network.modules():
        if isinstance(module, Head):
            module.logit.weight.data.normal_(std=config.contrast_width**-0.5)
    return network
