"""The config keys that every experiment understands, with their types and ranges; most are FuxiCTR's own."""

from typing import Annotated, Any, Literal, Required

from pydantic import Field
from typing_extensions import TypedDict

Task = Literal["binary_classification"]
ColumnType = Literal["numeric", "categorical", "sequence", "embedding", "meta"]
Dtype = Literal["str", "int", "float"]  # FuxiCTR evaluates a dtype as code
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
SplitBy = Literal["random", "time"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Regularizer = (
    Annotated[float, Field(ge=0)] | Annotated[str, Field(pattern=r"^(l[12]\([^,]+\)|l1_l2\([^,]+,[^,]+\))$")] | None
)
REGULARIZERS = ("embedding_regularizer", "net_regularizer", "method_regularizer", "regularizer")
# FuxiCTR's metrics; it evaluates the name of an NDCG as code, so nothing else may get there.
Metric = Annotated[str, Field(pattern=r"^(AUC|logloss|binary_crossentropy|gAUC|avgAUC|MRR|NDCG\(k=[0-9]+\))$")]
GROUP_METRICS = ("gAUC", "avgAUC", "MRR", "NDCG")
MAX_LEN = 50  # FuxiCTR's, where a config names none
# Without one of these, FuxiCTR raises a KeyError deep inside.
REQUIRED_OF_CSV = ("train_data", "feature_cols", "label_col")
REQUIRED = (
    "model",
    "dataset_id",
    "data_root",
    "data_format",
    "model_root",
    "task",
    "loss",
    "metrics",
    "optimizer",
    "batch_size",
    "epochs",
    "seed",
    "verbose",
)


class GivenVectors(TypedDict, total=False):
    """Keys of a column whose embedding starts from given vectors."""

    pretrained_emb: str  # a file, or `llm`: vectors of a language model, made where they are needed
    pretrain_usage: Literal["init", "sum", "concat"]
    pretrain_dim: Positive
    freeze_emb: bool


class EmbeddedColumn(GivenVectors, total=False):
    """Keys of a column's embedding, read when the data set is built and when the model is."""

    source: str
    embedding_dim: Positive
    emb_output_dim: Positive
    feature_encoder: str | list[str] | None
    share_embedding: str
    vocab_size: Positive


class FeatureSpec(EmbeddedColumn, total=False):
    """Changes to the columns of a built data set."""

    name: Required[str | Annotated[list[str], Field(min_length=1)]]
    type: ColumnType
    padding_idx: Count | None
    oov_idx: Count


class ModelKeys(TypedDict, total=False):
    """What to train and how: `Base`, backbone, method and expid entries."""

    model: str
    method: str | None
    dataset_id: str
    model_id: str
    model_root: str
    seed: Seed
    gpu: Annotated[int, Field(ge=-1)]
    num_threads: Positive | None  # null: as many as torch would take
    verbose: Annotated[int, Field(ge=0)]
    debug_mode: bool  # FuxiCTR's tuner asks for it
    checkpoint_minutes: Annotated[float, Field(ge=0)] | None  # between two checkpoints of training; null: none
    trackers: list[str]  # names that accelerate knows (tensorboard, wandb, ...); they get the curves of training
    pictures: bool  # whether a run draws the course of its training, and what its method learnt
    measure_serving: bool  # whether the record has the size and latency of what is served; a leaderboard's have
    keep_predictions: bool  # whether those of the test rows are kept beside the record; a leaderboard keeps them

    # Of a multi-task model: one for all labels, or a list with one for each.
    task: Task | Annotated[list[Task], Field(min_length=1)]
    loss: str | Annotated[list[str], Field(min_length=1)]
    metrics: Annotated[list[Metric], Field(min_length=1)]
    optimizer: str
    optimizer_impl: Literal["fuxictr", "fused"] | None  # null: fused where torch has it for the optimizer
    embedding_update: Literal["dense", "rows"]  # rows: only the rows of a batch are updated (lazy Adam)
    precision: Literal["fp32", "bf16", "fp16", "tf32"]  # of the forward pass in training
    learning_rate: Annotated[float, Field(gt=0)]
    embedding_dim: Positive | list[Positive]  # a list for a backbone whose constructor takes one: HOFM
    batch_size: Positive
    epochs: Positive
    shuffle: bool
    weight_decay: Annotated[float, Field(ge=0)] | None  # the optimizer's own, added after clipping
    embedding_regularizer: Regularizer
    net_regularizer: Regularizer
    method_regularizer: Regularizer  # on the method's own parameters, which the two above leave out
    max_gradient_norm: Annotated[float, Field(gt=0)]
    monitor: Metric | Annotated[dict[Metric, float], Field(min_length=1)]
    monitor_mode: Literal["max", "min"] | None  # null: as `monitor` needs it
    save_best_only: bool
    early_stop_patience: Positive
    eval_steps: Positive | None
    reduce_lr_on_plateau: bool

    tap_embedding: str | None  # the module that embeds the fields, where the one found is not meant
    tap_representation: str | list[str] | None  # the module(s) whose output (a Linear's input) is the representation

    # Without it: in memory where the data fits, or in blocks. Not in Base: FuxiCTR's own scripts take it for a class.
    data_loader: Literal["auto", "memory", "blocks", "ray"]
    num_workers: Count
    buffer_size: Positive
    group_id: str | None
    cluster_by: str | None  # the raw files' column of users, whom a leaderboard's bootstrap draws; null: see entities
    slice_by: str | None  # the column of the items by whose frequency test metrics are sliced; null: see entities
    use_features: list[str] | None
    feature_specs: list[FeatureSpec] | None
    feature_config: Any


class Column(EmbeddedColumn, total=False):
    """Keys of a feature column; `column_keys` says which column types have which of them."""

    name: Required[str | Annotated[list[str], Field(min_length=1)]]
    active: Required[bool]
    dtype: Required[Dtype]
    type: Required[ColumnType]
    fill_na: str | int | float | None  # null: what is missing stays so
    preprocess: str | None
    min_categr_count: Positive
    remap: bool
    category_processor: str | None
    num_buckets: Positive
    normalizer: Literal["StandardScaler", "MinMaxScaler"]
    splitter: Annotated[str, Field(min_length=1)]
    max_len: Count  # 0: as long as the longest of train
    padding: Literal["pre", "post"]


class Label(TypedDict, total=False):
    """Keys of a label column."""

    name: Required[str]
    dtype: Required[Dtype]
    active: Literal[True]
    fill_na: str | int | float | None
    preprocess: str | None


class Resplit(TypedDict):
    """One of several further splits of a data set's rows."""

    by: SplitBy
    number: Positive
    of: Positive


class DatasetKeys(TypedDict, total=False):
    """Where the data is and what its columns are: entries of a data-set config."""

    dataset_id: str
    data_root: str
    data_format: Literal["csv", "parquet", "npz"]
    train_data: str
    valid_data: str | None
    test_data: str | None
    sep: str
    n_rows: Positive | None
    feature_cols: list[Column]
    label_col: Label | list[Label]
    min_categr_count: Positive
    num_buckets: Positive
    valid_size: Annotated[float, Field(ge=0)]
    test_size: Annotated[float, Field(ge=0)]
    split_type: Literal["sequential", "random"]
    data_block_size: Count
    rebuild_dataset: bool

    # FuxiCTR's own for a data set (avazu, criteo, kkbox), or package.module:Class: how raw columns are read and fitted.
    feature_processor: str | None
    user_info: str  # parquet files of FuxiCTR's LongCTR data, both or none
    item_info: str
    download: str | None  # the page that publishes the raw files
    md5: dict[str, str | None] | None  # of those files, by their names (null: none is published)
    prepare: str | None  # the name of a data set that fuxictr_llm/data can download and write as csv
    prepare_split: Literal["random", "time"]  # how `prepare` splits it (`split` is an argument of FuxiCTR loaders)
    timestamp: Literal["bucketed", "raw"]  # what `prepare` writes where a time is a field: its weekday, or itself
    raw_data: str | None  # a folder with the original files, instead of a download
    time_column: str | None  # of the raw files: numbers or ISO times, by which rolling splits are cut
    resplit: Resplit | None  # leaderboard --splits sets it, with a dataset_id of its own
    field_config: str | None  # an entry of field_config/, or a YAML file: what the fields mean, in words


class LongKeys(TypedDict, total=False):
    """Keys of LongCTR data, known where a data set has `user_info`: how a model gets the histories."""

    max_len: Positive
    padding: Literal["pre", "post"]
