"""The models that are known without open_clip are open_clip's own."""

from __future__ import annotations

import open_clip
import pytest

from clipretrieval.encoding.weights.known_models import KNOWN_TAGS, known_config
from clipretrieval.encoding.weights.model_source import resolve
from clipretrieval.encoding.weights.open_clip_config import merged_preprocessing

RESNETS = [name for name in open_clip.list_models() if name.startswith("RN")]


@pytest.mark.parametrize("name", [name for name in KNOWN_TAGS if name in RESNETS])
def test_a_known_model_is_as_open_clip_has_it(name):
    config, size = open_clip.get_model_config(name), known_config(name)["vision_cfg"]["image_size"]
    assert known_config(name) == config
    for tag in KNOWN_TAGS[name]:
        entry = open_clip.get_pretrained_cfg(name, tag)
        assert entry["quick_gelu"]
        assert merged_preprocessing(size, entry) == merged_preprocessing(size, {})
        assert merged_preprocessing(size, {}) == vars(open_clip.transform.PreprocessCfg(size=size))
        source = resolve(name, tag)
        assert (source.model_cfg, source.preprocess_cfg) == (config, merged_preprocessing(size, {}))


def test_all_of_them_are_known():
    """So that open_clip is loaded for none that it had when this was written."""
    assert set(KNOWN_TAGS) <= set(RESNETS)
    for name in KNOWN_TAGS:
        assert set(KNOWN_TAGS[name]) <= set(open_clip.list_pretrained_tags_by_model(name))
    assert known_config("ViT-B-32") is None
