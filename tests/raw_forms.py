"""Small generated files in the forms in which data sets are published."""

from pathlib import Path

import numpy as np
import pandas as pd

ROWS = {"train": 240, "valid": 60, "test": 60}


def write_published(params: dict) -> None:
    """Write the csv files (and the vectors) that a packaged data-set config reads, below the current folder."""
    form = FORMS[Path(params["train_data"]).parent.name]
    for seed, split in enumerate(("train", "valid", "test")):
        path = Path(params[f"{split}_data"])
        path.parent.mkdir(parents=True, exist_ok=True)
        form(np.random.default_rng(seed), ROWS[split]).to_csv(path, index=False)
    for name in params["md5"]:
        if name.endswith(".h5"):
            _write_vectors(Path(params["train_data"]).parent / name)


def _write_vectors(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file["key"] = np.arange(40)
        file["value"] = np.random.default_rng(9).normal(size=(40, 64)).astype(np.float32)


def _table(label: str, draw, rows: int, **columns) -> pd.DataFrame:
    return pd.DataFrame({label: draw.integers(0, 2, rows), **columns})


def _history(draw, rows: int, values) -> list[str]:
    return ["^".join(map(str, draw.choice(values, size=draw.integers(0, 4)))) for _ in range(rows)]


def _holes(draw, values, share: float = 0.3) -> pd.Series:
    return pd.Series(values, dtype=object).mask(draw.random(len(values)) < share)


def criteo_x4(draw, rows: int) -> pd.DataFrame:
    """Counts and hashes, both with holes."""
    numbers = {f"I{i}": _holes(draw, draw.integers(-2, 500, rows)) for i in range(1, 14)}
    hashes = {f"C{i}": _holes(draw, [f"{x:08x}" for x in draw.integers(0, 6, rows)]) for i in range(1, 27)}
    return _table("Label", draw, rows, **numbers, **hashes)


def criteo_x1(draw, rows: int) -> pd.DataFrame:
    """Scaled numbers and ids, none missing."""
    numbers = {f"I{i}": draw.integers(0, 50, rows) / 50 for i in range(1, 14)}
    return _table("label", draw, rows, **numbers, **{f"C{i}": draw.integers(0, 6, rows) for i in range(1, 27)})


def avazu_x1(draw, rows: int) -> pd.DataFrame:
    return _table("label", draw, rows, **{f"feat_{i}": draw.integers(0, 9, rows) for i in range(1, 23)})


def avazu_x4(draw, rows: int) -> pd.DataFrame:
    hours = [f"1410{draw.integers(21, 31)}{draw.integers(0, 24):02d}" for _ in range(rows)]
    names = ["C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category"]
    names += ["device_id", "device_ip", "device_model", "device_type", "device_conn_type"]
    names += [f"C{i}" for i in range(14, 22)]
    ids = {"id": draw.integers(10**15, 10**16, rows)}
    others = {name: [f"{x:04x}" for x in draw.integers(0, 5, rows)] for name in names}
    table = _table("click", draw, rows, **others).assign(hour=hours, **ids)
    return table[["id", "click", "hour", *names]]


def kkbox(draw, rows: int) -> pd.DataFrame:
    """Genres and artists are numbers with a space between; songs have a registration code."""
    several = [" ".join(map(str, draw.choice(4, size=draw.integers(1, 4)))) for _ in range(rows)]
    words = {
        "source_system_tab": draw.choice(["discover", "my library", "search"], rows),
        "source_screen_name": draw.choice(["Explore", "Local playlist more"], rows),
        "source_type": draw.choice(["album", "song", "online-playlist"], rows),
        "gender": _holes(draw, draw.choice(["male", "female"], rows), 0.4),
        "isrc": _holes(draw, [f"{land}QX91600000" for land in draw.choice(["TW", "US", "GB"], rows)]),
    }
    numbers = {name: draw.integers(1, 6, rows) for name in ("msno", "song_id", "city", "registered_via", "language")}
    return _table("label", draw, rows, **numbers, **words).assign(
        genre_ids=several, artist_name=several[::-1], bd=draw.integers(0, 120, rows), song_length=200000
    )


def frappe(draw, rows: int) -> pd.DataFrame:
    names = ["user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city"]
    return _table("label", draw, rows, **{name: draw.integers(0, 7, rows) for name in names})


def movielenslatest(draw, rows: int) -> pd.DataFrame:
    return _table("label", draw, rows, **{name: draw.integers(0, 9, rows) for name in ("user_id", "item_id", "tag_id")})


def taobaoad(draw, rows: int) -> pd.DataFrame:
    names = ["userid", "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level", "shopping_level"]
    names += ["occupation", "new_user_class_level", "adgroup_id", "cate_id", "campaign_id", "customer", "brand", "pid"]
    histories = {name: _history(draw, rows, range(1, 5)) for name in ("cate_his", "brand_his", "btag_his")}
    numbers = {name: draw.integers(1, 4, rows) for name in names}
    return _table("clk", draw, rows, **histories, **numbers, price=draw.integers(1, 900, rows) / 10, btag=1)


def amazonelectronics(draw, rows: int) -> pd.DataFrame:
    numbers = {name: draw.integers(1, 9, rows) for name in ("user_id", "item_id", "cate_id")}
    histories = {name: _history(draw, rows, range(1, 12)) for name in ("item_history", "cate_history")}
    return _table("label", draw, rows, **numbers, **histories)


def kuaivideo(draw, rows: int) -> pd.DataFrame:
    numbers = {name: draw.integers(0, 6, rows) for name in ("user_id", "item_id")}
    histories = {name: _history(draw, rows, range(8)) for name in ("pos_items", "neg_items")}
    return _table("is_click", draw, rows, **numbers, **histories)


def microvideo(draw, rows: int) -> pd.DataFrame:
    numbers = {name: draw.integers(0, 6, rows) for name in ("user_id", "item_id", "cate_id", "timestamp")}
    histories = {name: _history(draw, rows, range(8)) for name in ("clicked_items", "clicked_categories")}
    return _table("is_click", draw, rows, **numbers, **histories)


FORMS = {
    "criteo_x1": criteo_x1,
    "criteo_x4": criteo_x4,
    "avazu_x1": avazu_x1,
    "avazu_x4": avazu_x4,
    "kkbox_x1": kkbox,
    "frappe_x1": frappe,
    "movielenslatest_x1": movielenslatest,
    "taobaoad_x1": taobaoad,
    "amazonelectronics_x1": amazonelectronics,
    "kuaivideo_x1": kuaivideo,
    "microvideo1.7m_x1": microvideo,
}
