"""A run uses one build of its data set: no other process replaces it meanwhile, and where one does, the run ends."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from fuxictr.features import FeatureMap

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of, digest_of_file, sizes_of
from fuxictr_llm.common.processes import is_main
from fuxictr_llm.common.readers import Readers, reading

AFFECTS_RESULTS = False  # see common/code_digest.py
MANIFEST = "build.json"
BUILD = "build_sha256"  # an attribute of a feature map


def holding(params: Mapping[str, Any]) -> AbstractContextManager[Readers | None]:
    """In the block, no other run replaces the built data set of these settings.

    Of torchrun's processes the main one alone sees to that: it may have to build the data set while the others wait.
    """
    return lock_of(params) if is_main() else nullcontext()


def lock_of(params: Mapping[str, Any]) -> AbstractContextManager[Readers]:
    """The lock of a data set's folder, which who reads it shares, and who builds it has alone.

    It lies beside the folder: processes on other machines and in containers, which share the folder, see it too.
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
    if not columns.is_file():
        return ""
    sizes = {name: size for name, size in sizes_of(data_dir).items() if name.endswith((".parquet", ".npz"))}
    return digest_of([digest_of_file(columns), sizes])
