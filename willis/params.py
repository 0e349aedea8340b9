"""Science facts: one frozen model per section of params.yaml, section name = step name = DVC stage name.

Units stand in the names. What all sections share, and how one is checked, is in `willis/sections.py`.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from willis.cohort.schema import Sequence
from willis.errors import ParamsError
from willis.sections import Section, Share, Whole, by_method
from willis.sections import parse_section as parse_section  # noqa: PLC0414  (every caller finds it here)


class CohortParams(Section):
    """The synthetic cohort (docs/cohort.md)."""

    num_patients: Whole = Field(480, ge=1)
    """How many patients are made."""
    seed: Whole = 7
    """Same seed, same bytes."""
    preset: Literal["published", "interacting"] = "published"
    """`published`: effects as published; `interacting`: built for comparing fusions."""
    scanners: tuple[str, ...] = ("north", "south", "east")
    """Scanners that patients are drawn from; `new` is kept for the drift scenario."""
    without_infarct: Share = 0.0
    """Share of studies without an infarct."""
    ceiling_draws: Whole = Field(120_000, ge=1000)
    """Patients that the boosted check of the ceilings learns from."""
    num_workers: Whole = Field(0, ge=0, description="0 means one per core")


class VersionParams(Section):
    """What `version` tells DVC."""

    timeout_s: float = Field(60, gt=0)
    """Longest silence of DVC or its remote that is taken for life."""


class SplitShares(Section):
    """Shares of the four splits; they add up to 1."""

    train: Share = 0.60
    """Fitted on."""
    validation: Share = 0.12
    """Early stopping, temperature, threshold."""
    calibration: Share = 0.10
    """Conformal sets alone."""
    test: Share = 0.18
    """Read by `evaluate` alone."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        total = self.train + self.validation + self.calibration + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"shares add up to {total:g}; they must add up to 1")
        return self


class IngestParams(Section):
    """How studies become arrays, facts and splits."""

    sequences: tuple[Sequence, ...] = ("dwi", "adc", "flair")
    """3-D sequences that the model reads; a study may lack any."""
    planes: tuple[Literal["flair"], ...] = ()
    """2-D planes that the model reads through a stem of their own."""
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 4.0)
    """Edges of a voxel of the canonical grid, left-right, back-front, down-up."""
    shape: tuple[Whole, Whole, Whole] = (88, 104, 40)
    """Voxels of the canonical grid along the same axes."""
    adc_below_mm2_s: float = Field(620e-6, gt=0)
    """Diffusion below this, in bright DWI, counts as infarct core."""
    min_lesion_ml: float = Field(0.05, ge=0)
    """Components smaller than this are noise."""
    min_registration_quality: Share = 0.8
    """A registration below this quality leaves the study out."""
    max_volume_mb: float = Field(512, gt=0, description="a file that unpacks to more is refused")
    studies_per_shard: Whole = Field(256, ge=1)
    """Studies in one memory-mapped file."""
    splits: SplitShares = SplitShares()
    """Shares of the four splits."""
    outcome_column: Literal["mrs_90d", "mrs"] = "mrs_90d"
    """Which outcome the source has; `mrs` where its time is not 90 days."""
    require_outcome: bool = Field(
        True, description="refuse a cohort that cannot be learnt from; false to prepare studies alone"
    )
    columns: dict[str, str] = Field(default_factory=dict, description="source column -> Willis column")
    ignored_columns: tuple[str, ...] = ()
    """Source columns that are not used."""
    num_workers: Whole = Field(0, ge=0)
    """Processes; 0 means one per core."""


class ReportParams(Section):
    """Who writes the reports."""

    writer: Literal["facts", "llm", "none"] = "facts"
    """`facts` renders what was measured, `llm` asks a model, `none` writes nothing."""
    model: str = "willis-reader"
    """Behind `llm`: `willis-reader` is the packaged one, any other a Hugging Face name or a folder."""
    temperature: float = Field(0.0, ge=0, le=2)
    """Sampling temperature of the first attempt."""
    max_words: Whole = Field(60, ge=10, le=60, description="of the impression")
    max_attempts: Whole = Field(2, ge=1, le=5, description="a contradicting report is written again")
    concurrency: Whole = Field(8, ge=1, description="reports in flight at once, per worker")
    num_workers: Whole = Field(
        0, ge=0, description="of Ray Data, which ask the servers; 0 asks from the step"
    )
    max_tokens: Whole = Field(1024, ge=64, description="of a model's answer; a longer one is cut and refused")
    timeout_s: float = Field(60, gt=0, description="for one answer of the server")
    deadline_s: float = Field(180, gt=0, description="for one attempt with all its retries")
    num_retries: Whole = Field(4, ge=0, le=20, description="after errors of network or server")
    turnaround_minutes: float = Field(30, gt=0, description="from scan to report: the report's event time")
    facts_in_prompt: bool = True
    """Tell the model what was measured; false leaves it the pictures alone."""
    layout: Literal["composite", "panels"] = "composite"
    """`composite`: DWI, ADC, FLAIR of a level as one small colour picture; `panels`: side by side in grey."""
    num_slices: Whole = Field(40, ge=1, le=64, description="axial levels that the model sees, at most")
    panel_px: Whole = Field(224, ge=32, le=1024, description="edge of one panel; composites have 112 pixels")


class FeaturizeParams(Section):
    """The feature store and the training table."""

    ttl_days: Whole = Field(30, ge=1)
    """How old a feature may be and still be joined or served."""
    table_columns: tuple[str, ...] = Field((), description="clinical columns; empty means all of the schema")
    decision_minutes: float = Field(
        60, gt=0, description="from scan to the time at which features are joined"
    )


class LoopParams(Section):
    """A training loop and the workers that run it."""

    seed: Whole = 7
    """Seed of weights, order of patients and dropout."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(1e-2, ge=0, description="decoupled, of AdamW")
    warmup_share: Share = Field(0.1, description="share of steps in which the learning rate rises")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the gradient")
    num_workers: Whole = Field(2, ge=1)
    """Ray Train workers."""
    use_gpu: bool = False
    """One GPU per worker, NCCL between them."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass."""
    threads_per_worker: Whole = Field(1, ge=1, description="CPU threads of each worker")
    checkpoint_every: Whole = Field(1, ge=1, description="epochs between checkpoints")
    max_failures: Whole = Field(3, ge=0, description="lost workers that a run survives")


ImageEncoderName = Literal["cnn_small", "cnn", "cnn_large", "swin"]


class PretrainParams(LoopParams):
    """Pre-training of the image encoder, without labels (docs/method.md)."""

    method: Literal["none", "brainmvp", "mics", "imputmae"] = "none"
    """`brainmvp`, `mics`, `imputmae`: three ways to rebuild masked sequences; `none`: start from nothing."""
    image_encoder: ImageEncoderName = "cnn"
    """Which encoder is taught; the same as `train.image_encoder`."""
    epochs: Whole = Field(40, ge=1, description="passes over the training split; the last weights are kept")
    batch_size: Whole = Field(32, ge=2, description="over all workers")
    mask_rate: float = Field(default_factory=by_method(0.8, mics=0.75, imputmae=0.75), gt=0, lt=1)
    """Share of blocks that are hidden; .75 for `mics` and `imputmae`."""
    block: Whole = Field(8, ge=1, description="edge of a block, in voxels; a multiple of 4")
    tau: float = Field(default_factory=by_method(0.1, mics=0.07), gt=0)
    """Temperature of the contrast of two views; .07 for `mics`."""
    template_share: Share = Field(default_factory=by_method(0.2, mics=0.0, imputmae=0.0))
    """First share of steps: no sequence stands for another; 0 for `mics` and `imputmae`."""
    contrast_share: Share = Field(default_factory=by_method(1 / 3, mics=1.0))
    """Last share of steps: what compares views counts; 1 for `mics`."""
    momentum: Share = Field(0.995, description="of the slow encoder of `mics`, per step")
    bank: Whole = Field(1024, ge=2, description="keys that `mics` keeps of earlier steps, two per study")
    soft_targets: Share = Field(0.4, description="share of `mics`' target that its slow encoder gives")
    lambda_discriminator: float = Field(0.1, ge=0, description="weight of hiding the sequence, in `mics`")


class TrainParams(LoopParams):
    """The trimodal network and its training."""

    epochs: Whole = Field(16, ge=1)
    """Longest run, in passes over the training split."""
    batch_size: Whole = Field(32, ge=2, description="over all workers")
    dropout: Share = 0.3
    """Dropout in the heads and the fusion."""
    modality_dropout: Share = 0.0
    """Share of patients whose modalities are hidden in a step, over all seven patterns."""
    lambda_subsets: float = Field(6.0, ge=0, description="weight of answering from less; 0: never asked")
    sequence_dropout: Share = 0.1
    """Chance that a present sequence is replaced by its template in a step."""
    patience: Whole = Field(8, ge=1)
    """Epochs without improvement before the run stops."""
    stop_on: Literal["auc", "loss"] = "loss"
    """What early stopping watches on the validation split."""
    use_unlabelled: bool = Field(True, description="patients without an outcome join the alignment losses")
    semi_supervision: Literal["none", "src_mt"] = "none"
    """`src_mt`: agree with an averaged network, on patients without an outcome too (docs/method.md)."""
    teacher_decay: float = Field(0.99, ge=0, lt=1, description="of the average that teaches in `src_mt`")
    lambda_consistency: float = Field(1.0, ge=0, description="of both in `src_mt`, once it has risen")
    consistency_ramp_share: Share = Field(0.3, description="share of steps in which it rises")
    outcome: Literal["ordinal", "binary"] = "ordinal"
    """Learn from all seven grades of the Rankin scale, or only from poor (3-6) against good."""
    isda: float = Field(0.0, ge=0, description="strength of augmenting embeddings along their class; 0: off")
    class_weighting: Literal["none", "balanced"] = "none"
    """`balanced`: the rarer outcome weighs as much in all as the other (docs/method.md)."""
    fusion: Literal["concat", "add", "cross_attention", "daft", "vdafm_pooled", "vdafm_token", "late"] = (
        "vdafm_pooled"
    )
    """How image and report meet (docs/method.md); `vdafm_token` alone word by word, `late` not at all."""
    late_weights: Literal["learned", "entropy"] = "learned"
    """In `late`: one weight per modality, or also less for one that is unsure of the case."""
    absent: Literal["learned", "imputed"] = "learned"
    """What stands for an absent modality: a learned vector, or a guess from those that are present."""
    roads: Literal["shared", "by_pattern"] = "by_pattern"
    """From a modality straight to the answer: one road, or another for each pattern of presence."""
    lambda_imputation: float = Field(1.0, ge=0, description="weight of learning to guess, in `imputed`")
    width: Whole = Field(128, ge=16)
    """Shared width D of the fusion."""
    contrast_width: Whole = Field(64, ge=8)
    """Width r in which images and reports are contrasted."""
    fusion_layers: Whole = Field(1, ge=1, le=3)
    """Layers of attention in `vdafm_pooled` and `vdafm_token`."""
    fusion_heads: Whole = Field(8, ge=1)
    """Attention heads of those layers."""
    lambda_contrast: float = Field(0.005, ge=0, description="weight of the contrast in the first epoch")
    lambda_contrast_decay: float = Field(0.95, gt=0, le=1, description="its factor per epoch")
    lambda_align: float = Field(0.1, ge=0, description="weight of the alignment loss")
    temperature: float = Field(0.07, gt=0)
    """Temperature at which the contrast starts; it is learnt."""
    image_encoder: ImageEncoderName = "cnn"
    """Encoder of the volumes: a patch-stem CNN of three sizes, or windows of attention on the same stem."""
    freeze_image_encoder: bool = False
    """Leave it as `pretrain` left it, templates included; only its last map learns."""
    image_facts: bool = True
    """Join the measured facts to the image embedding."""
    table_encoder: Literal["mlp", "ft_transformer"] = "mlp"
    """Encoder of the clinical table; `ft_transformer`: attention over one token per column."""
    numbers: Literal["linear", "piecewise"] = "linear"
    """How facts and table enter: as one number each, or cut at quartiles into pieces as well."""
    text_encoder: str = "all-MiniLM-L6-v2"
    """Frozen sentence encoder: the packaged one, a folder with another, or `ORG/MODEL@COMMIT` of a hub."""
    use_modalities: tuple[Literal["image", "text", "table"], ...] = ("image", "text", "table")
    """Modalities that the network may see."""


class SearchRange(Section):
    """What `willis tune` tries for one key of `train`: one of the three."""

    choices: tuple[Any, ...] = Field((), description="values to choose from")
    uniform: tuple[float, float] | None = Field(None, description="lowest and highest value")
    log_uniform: tuple[float, float] | None = Field(
        None, description="the same, even over orders of magnitude"
    )


class TuneParams(Section):
    """The search of `willis tune` for better values of `train` (docs/extend.md)."""

    num_samples: Whole = Field(16, ge=2, description="trials in all; the first is `train` as it stands")
    max_concurrent: Whole = Field(2, ge=1, description="trials at once, where the cluster has room")
    grace_epochs: Whole = Field(4, ge=1, description="epochs that a trial has before it may be stopped")
    reduction_factor: Whole = Field(3, ge=2, description="one trial in so many goes on at each halt")
    seed: Whole = Field(7, ge=0, description="same seed and space, same trials")
    space: dict[str, SearchRange] = Field(
        default_factory=dict,
        description="key of `train` -> `choices`, `uniform` or `log_uniform`: what is tried for it",
    )


class EvaluateParams(Section):
    """What is reported, and how sure one wants to be."""

    num_bootstrap: Whole = Field(2000, ge=100)
    """Resamples of patients behind each interval."""
    confidence: Share = 0.95
    """Coverage of the intervals."""
    conformal_coverage: Share = 0.90
    """Promised coverage of the prediction sets."""
    num_permutations: Whole = Field(20, ge=1)
    """Permutations of the reports across patients."""
    seed: Whole = 7
    """Seed of resampling and permutation."""


class PromoteParams(Section):
    """The gate that a candidate must pass."""

    alias: str = "champion"
    """The alias that moves."""
    min_auc: Share = 0.55
    """A candidate below this AUC is not promoted."""
    max_ece: Share = 0.25
    """A candidate above this calibration error is not promoted."""
    max_auc_loss: Share = Field(0.02, description="against the champion, on the same test patients")
    min_compared: Whole = Field(30, ge=10, description="test patients whom neither model has learned from")
    num_reference: Whole = Field(400, ge=20)
    """Validation rows kept in the bundle to measure drift against."""


class DeployParams(Section):
    """The Ray Serve application: an ingress that reads and prepares, a model that predicts."""

    app_name: str = "willis"
    """Name of the Serve application."""
    alias: str = "champion"
    """The alias whose bundle is served."""
    num_replicas: Whole = Field(2, ge=1, description="of each of the two; 2 let a redeployment drop nothing")
    cpus_per_replica: float = Field(0.5, gt=0)
    """Logical CPUs of a replica."""
    gpus_per_replica: float = Field(0.0, ge=0)
    """GPUs of a replica."""
    healthy_within_s: float = Field(180, gt=0)
    """Longest wait for a healthy application."""
    request_deadline_s: float = Field(30, gt=0)
    """Longest time that a request may take."""
    report_deadline_s: float = Field(10, gt=0)
    """Longest time that the report writer may take."""
    max_upload_mb: float = Field(256, gt=0, description="whole request body, in MiB")
    max_in_flight: Whole = Field(32, ge=1, description="predictions per replica; more are refused at once")
    threads_per_replica: Whole = Field(4, ge=1, description="requests that a replica prepares at once")
    max_batch: Whole = Field(8, ge=1, description="cases that the model takes together")
    batch_wait_s: float = Field(0.002, ge=0, description="how long the model waits for company")


class MonitorParams(Section):
    """When drift rings."""

    alias: str = Field("champion", description="the bundle whose reference and predictions are compared")
    window_hours: float = Field(24, gt=0)
    """Length of the window when no bounds are given."""
    min_window: Whole = Field(30, ge=10)
    """Fewest predictions that can show drift."""
    min_values: Whole = Field(10, ge=5, description="values that a column needs on both sides")
    num_resamples: Whole = Field(500, ge=100)
    """Windows resampled from the reference behind each threshold."""
    quantile: float = Field(0.99, ge=0.5, lt=1)
    """Share of those windows that must stay quiet."""
    drift_share: Share = Field(0.06, description="share of ringing columns from which a window drifted")
    min_outcomes: Whole = Field(30, ge=10)
    """Fewest outcomes that performance is computed from."""
    min_auc: Share = Field(0.60, description="an alert when the window's AUC is surely below")
    seed: Whole = 7
    """Seed of the resampling."""


class Params(Section):
    """The whole of params.yaml."""

    cohort: CohortParams = CohortParams()
    version: VersionParams = VersionParams()
    ingest: IngestParams = IngestParams()
    report: ReportParams = ReportParams()
    featurize: FeaturizeParams = FeaturizeParams()
    pretrain: PretrainParams = PretrainParams()
    train: TrainParams = TrainParams()
    tune: TuneParams = TuneParams()
    evaluate: EvaluateParams = EvaluateParams()
    promote: PromoteParams = PromoteParams()
    deploy: DeployParams = DeployParams()
    monitor: MonitorParams = MonitorParams()


def load_params(path: Path) -> Params:
    """Read params.yaml.

    Raises:
        ParamsError: the file is missing, is not YAML, or breaks a rule.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        values = YAML(typ="safe").load(path)
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist; copy params.yaml from the repository's root") from None
    except YAMLError as error:
        raise ParamsError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{path} holds {type(values).__name__}; it must hold one mapping per section")
    params = parse_section(Params, values, str(path))
    _check_image_encoders(params, path)
    return params


def _check_image_encoders(params: Params, path: Path) -> None:
    """`train` could not start from what `pretrain` would teach; say so before an hour of teaching."""
    taught, trained = params.pretrain.image_encoder, params.train.image_encoder
    if params.pretrain.method != "none" and taught != trained:
        raise ParamsError(
            f"pretrain.image_encoder is {taught!r} and train.image_encoder is {trained!r}; they must be "
            f"equal, for train starts from the weights of pretrain ({path})"
        )
