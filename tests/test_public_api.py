"""What other people's code may import, by name; a removal has to be meant."""

import gptoss_kernels

import gptoss_tune
from gptoss_tune.recipe import load_recipe


def test_package():
    assert gptoss_tune.load_recipe is load_recipe
    assert set(gptoss_tune.__all__) == {
        *("CheckpointError", "DataError", "GptossTuneError", "GuardError", "HubError"),
        *("MachineError", "RecipeError", "RunInterrupted", "__version__"),
        *("load_recipe", "train", "merge", "verify", "push", "plan", "render"),
        *("Recipe", "RunSummary", "Merged", "Verification", "Pushed", "Plan", "Example"),
        *("StepObserver", "LossFunction", "LossOutputs", "weighted_token_loss"),
    }
    for name in gptoss_tune.__all__:
        assert getattr(gptoss_tune, name) is not None


def test_errors_are_also_what_python_calls_them():
    assert issubclass(gptoss_tune.RecipeError, ValueError)
    assert issubclass(gptoss_tune.DataError, ValueError)
    assert issubclass(gptoss_tune.CheckpointError, RuntimeError)
    assert issubclass(gptoss_tune.HubError, RuntimeError)
    codes = {e.__name__: e.exit_code for e in gptoss_tune.GptossTuneError.__subclasses__()}
    assert codes == {
        "RecipeError": 2,
        "DataError": 2,
        "CheckpointError": 2,
        "HubError": 3,
        "ThresholdMissed": 5,
        "MachineError": 3,
        "UndecidedError": 4,
        "GuardError": 2,
        "RunInterrupted": 75,
    }


def test_kernels():
    for name in gptoss_kernels.__all__:
        assert getattr(gptoss_kernels, name) is not None
    assert {"experts", "linear_cross_entropy", "dequantize", "quantize"} <= set(
        gptoss_kernels.__all__
    )
