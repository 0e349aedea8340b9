"""From tissue to signal: DWI at b = 1000 s/mm^2, ADC and FLAIR as a scanner would measure them.

Signal equations are spin echo with diffusion weighting, and inversion recovery; times in ms, diffusion in
1e-3 mm^2/s. Tissue constants and their sources: docs/cohort.md.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from willis.errors import ParamsError

Floats = npt.NDArray[np.float32]

B_S_MM2 = 1000.0


@dataclass(frozen=True)
class Tissue:
    """What decides a tissue's signal: proton density, T1 at 1.5 and 3 tesla, T2, diffusion."""

    density: float
    t1_ms: tuple[float, float]
    t2_ms: float
    adc: float


GREY = Tissue(0.80, (1124, 1331), 95, 0.80)
WHITE = Tissue(0.71, (884, 832), 76, 0.72)
FLUID = Tissue(1.00, (4300, 4300), 2000, 3.00)
HYPERINTENSE = Tissue(0.78, (1150, 1150), 135, 1.00)
"""White-matter hyperintensity, and the rim of an old infarct."""

BLOOD_T2_MS = 32.0
"""Early haemorrhage (deoxyhaemoglobin) is dark."""


@dataclass(frozen=True)
class Scanner:
    """One MRI scanner and the habits of its site.

    Attributes:
        name, site: as they stand in participants.tsv.
        tesla: 1.5 or 3.
        snr_dwi, snr_flair: of the brain's median in the DWI trace image and in FLAIR.
        te_dwi_ms, te_flair_ms, ti_ms, tr_ms: timing.
        bias: sd of the log intensity inhomogeneity.
        slice_blur: sd of the slice profile in voxels of 4 mm; thick slices blur more.
        b_error: relative error of the b-value; it biases ADC.
        gain_dwi, gain_flair: numbers per unit of signal.
    """

    name: str
    site: str
    tesla: float
    snr_dwi: float
    snr_flair: float
    te_dwi_ms: float
    te_flair_ms: float
    ti_ms: float
    tr_ms: float
    bias: float
    slice_blur: float
    b_error: float
    gain_dwi: float
    gain_flair: float


SCANNERS = {
    scanner.name: scanner
    for scanner in (
        Scanner("north", "harbour", 3.0, 26, 34, 78, 100, 2480, 9000, 0.07, 0.30, 0.00, 3000, 3600),
        Scanner("south", "hillside", 1.5, 20, 26, 90, 110, 2400, 8500, 0.05, 0.45, 0.02, 4200, 2600),
        Scanner("east", "riverside", 3.0, 23, 30, 70, 92, 2520, 9500, 0.10, 0.35, -0.02, 2400, 5200),
        Scanner("new", "lakeside", 1.5, 11, 12, 115, 165, 2150, 7000, 0.20, 0.90, 0.18, 6500, 1900),
    )
}
"""`new` is kept for the drift scenario: low signal, thick slices, long echoes, a b-value that is off."""


def scanner_named(name: str) -> Scanner:
    """Return a scanner.

    Raises:
        ParamsError: there is no such scanner.
    """
    if name not in SCANNERS:
        raise ParamsError(
            f"scanner {name!r} is not known; choose from {', '.join(SCANNERS)} (cohort.scanners)"
        )
    return SCANNERS[name]


@dataclass(frozen=True)
class Signals:
    """The three signals of a voxel or of many: without and with diffusion weighting, and FLAIR."""

    b0: Floats
    b1000: Floats
    flair: Floats

    def scaled(self, share: Floats) -> "Signals":
        """Each signal times a share of the voxel."""
        return Signals(self.b0 * share, self.b1000 * share, self.flair * share)

    def __add__(self, other: "Signals") -> "Signals":
        return Signals(self.b0 + other.b0, self.b1000 + other.b1000, self.flair + other.flair)


def tissue_signal(
    tissue: Tissue, scanner: Scanner, t2_factor: Floats | float = 1.0, adc_factor: Floats | float = 1.0
) -> Signals:
    """Signals of a voxel full of one tissue, T2 and diffusion multiplied by the factors."""
    t1 = tissue.t1_ms[0] if scanner.tesla < 2 else tissue.t1_ms[1]
    t2 = np.asarray(tissue.t2_ms * t2_factor, np.float32)
    recovery = abs(1 - 2 * np.exp(-scanner.ti_ms / t1) + np.exp(-scanner.tr_ms / t1))
    b0 = tissue.density * np.exp(-scanner.te_dwi_ms / t2)
    weight = 1e-3 * B_S_MM2 * (1 + scanner.b_error) * tissue.adc
    return Signals(
        b0.astype(np.float32),
        (b0 * np.exp(-weight * np.asarray(adc_factor, np.float32))).astype(np.float32),
        (tissue.density * recovery * np.exp(-scanner.te_flair_ms / t2)).astype(np.float32),
    )


def lesion_t2_factor(onset_to_scan_h: float) -> float:
    """Growth of T2 in an infarct: hardly any in the first hours (DWI-FLAIR mismatch), 1.4 after a day."""
    return 1.03 + 0.45 * (1 - float(np.exp(-((onset_to_scan_h / 16) ** 1.3))))


def rician(rng: np.random.Generator, signal: Floats, noise: float) -> Floats:
    """Magnitude of a signal with complex Gaussian noise of this sd."""
    real, imaginary = (noise * rng.standard_normal(signal.shape, np.float32) for _ in range(2))
    magnitude: Floats = np.hypot(signal + real, imaginary)
    return magnitude


def adc_from(b0: Floats, b1000: Floats) -> Floats:
    """ADC in 1e-6 mm^2/s as a scanner computes it, from 1 to 4000."""
    ratio = np.maximum(b0, 1e-6) / np.maximum(b1000, 1e-6)
    adc: Floats = np.clip(np.log(ratio) * np.float32(1e6 / B_S_MM2), 1, 4000)
    return adc
