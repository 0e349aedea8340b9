"""Every error that Willis raises on purpose, as one tree.

WillisError                 catch this to catch all of them
|- InputError               what the user gave is wrong; the message says value, rule and place
|  |- ParamsError           params.yaml or a parameter of a step
|  |- SettingsError         an environment variable
|  |- StudyError            one study's files; the study is listed and left out, the run goes on
|  |- TableError            the clinical table
|  |- CohortError           the cohort as a whole (nobody has an outcome, one class only ...)
|  |- ReportError           a report that breaks the schema or states what it must not
|  |- ShapeError            arrays that do not fit together
|  `- BundleError           a bundle or checkpoint that is damaged or of another architecture
|- ServiceError             something outside does not answer or refuses; trying again may help
|  |- StoreError            object store, DVC remote, feature store, database
|  |- RayError              the Ray cluster or its Serve controller
|  `- ReportServerError     the server behind the report writer
|- StaleFeaturesError       online features are older than their view allows
|- LeakError                a result is better than the known ceiling allows
|- GateError                a candidate does not pass the promotion gate
`- StepError                a step that cannot go on, with what to do next
"""


class WillisError(Exception):
    """Root of the tree."""


class InputError(WillisError):
    """What the user gave is wrong."""


class ParamsError(InputError):
    """A parameter is unknown, out of range or contradicts another."""


class SettingsError(InputError):
    """An environment variable is missing or malformed."""


class StudyError(InputError):
    """One study cannot be used; it is listed with this reason and left out."""


class TableError(InputError):
    """The clinical table breaks a rule of the schema."""


class CohortError(InputError):
    """The cohort as a whole cannot be used."""


class ReportError(InputError):
    """A report breaks its schema or says what a report must not say."""


class ShapeError(InputError):
    """Arrays that must fit together do not."""


class BundleError(InputError):
    """A bundle or checkpoint is damaged, incomplete or of another architecture."""


class ServiceError(WillisError):
    """A service outside this process does not answer or refuses."""


class StoreError(ServiceError):
    """Object store, DVC remote, feature store or database."""


class RayError(ServiceError):
    """The Ray cluster or its Serve controller."""


class ReportServerError(ServiceError):
    """The server behind the report writer."""


class StaleFeaturesError(WillisError):
    """Online features are absent or older than their view allows."""


class LeakError(WillisError):
    """A result exceeds what the true probabilities allow."""


class GateError(WillisError):
    """A candidate bundle does not pass the promotion gate."""


class StepError(WillisError):
    """A step cannot go on; the message says what to do."""
