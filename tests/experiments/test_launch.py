"""What entry points share: programs kept between runs, runs that only evaluate."""

import jax
import pytest

from configs.mpobert import pretraining
from configs.opdf import base as opdf
from configs.opf import base as opf
from configs.pet_search import base as pet_search
from experiments import config_fields, launch, train

NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def settings():
    """Those of jax, as they were afterwards."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_are_kept_in_a_folder(settings, tmp_path):
    launch._keep_programs(str(tmp_path / "new" / "cache"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "new" / "cache")
    assert (tmp_path / "new" / "cache").is_dir()
    launch._keep_programs("gs://bucket/cache")
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/cache"
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="a file stands where a folder is needed"):
        launch._keep_programs(str(tmp_path / "file"))


@pytest.mark.parametrize(
    "config",
    [module.get_config() for module in (opdf, opf, pet_search, pretraining)],
    ids=["distillation", "opf", "pet_search", "pretraining"],
)
def test_methods_without_a_meaning_before_the_first_step_say_so(config):
    config.steps = 0
    with pytest.raises(ValueError, match=r"config\.steps=0 must be an integer of at least 1"):
        train.check(config)
    config_fields.check(config)
