"""A run uses one build of its data set: no other process replaces it meanwhile, and where one does, the run ends."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fuxictr.features import FeatureMap

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of, digest_of_file, sizes_of
from fuxictr_llm.common.readers import Readers, reading

AFFECTS_RESULTS = False  # see common/code_digest.py
MANIFEST = "build.json"
BUILD = "build_sha256"  # an attribute of a feature map


def holding(params: Mapping[str, Any]) -> AbstractContextManager[Readers]:
    """In the block, no other process replaces the built data set of these settings.

    The lock lies beside its folder: processes on other machines and in containers, which share the folder, see it too.
    """
    root, name = Path(params["data_root"]), params["dataset_id"]
    what = f"the built data {str(root / name)!r} (data that is built in another way needs a data_root of its own)"
    return reading(root / f".{name}.build.lock", what)


def note_build(feature_map: FeatureMap, data_dir: Path) -> None:
    """Note in a feature map which build of the data set it is of."""
    setattr(feature_map, BUILD, (data_dir, _build_of(data_dir)))


def check_build(feature_map: FeatureMap) -> None:
    """Check that the built data set is still the one that the feature map is of.

    Raises:
        UserError: something that does not heed the lock replaced it.
    """
    data_dir, build = getattr(feature_map, BUILD, (None, None))
    if data_dir is not None and build != _build_of(data_dir):
        raise UserError(
            f"the built data {str(data_dir)!r} was replaced while this run used it; run it again, and give runs whose "
            "data is built in another way a data_root or dataset_id of their own"
        )


def _build_of(data_dir: Path) -> str:
    """A digest of what its manifest says; of what FuxiCTR built, of its columns and the sizes of its files."""
    manifest, columns = data_dir / MANIFEST, data_dir / "feature_map.json"
    if manifest.is_file():
        return digest_of_file(manifest)
    return digest_of([digest_of_file(columns), sizes_of(data_dir)]) if columns.is_file() else ""
