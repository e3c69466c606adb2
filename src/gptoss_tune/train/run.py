"""One run from recipe to adapter: the order in which the rooms are called.

What can be refused is refused early: the folder is claimed and the data rendered before a gigabyte
of weights is read, and nothing is written into the folder before the recipe is known to fit it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, set_seed
from rich.console import Console

from gptoss_tune.display import visible
from gptoss_tune.errors import GptossTuneError, GuardError
from gptoss_tune.evaluate.evaluator import Evaluator
from gptoss_tune.files.atomic import write_text
from gptoss_tune.harmony.dataset.load import load_dataset, row_sources
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.model.build import build
from gptoss_tune.model.sharding import Share
from gptoss_tune.recipe import Recipe, recipe_yaml
from gptoss_tune.recipe.schema import Parallelism
from gptoss_tune.run import card, checkpoints, folder
from gptoss_tune.run.environment import environment
from gptoss_tune.run.lock import FolderLock
from gptoss_tune.run.record import RECIPE, update_record
from gptoss_tune.train import find_batch_size, finish, out_of_memory
from gptoss_tune.train.data.collator import Collator
from gptoss_tune.train.deterministic import PRICE, deterministic
from gptoss_tune.train.distributed import watchdog
from gptoss_tune.train.distributed.device import refuse_unusable_gpu
from gptoss_tune.train.distributed.launcher import launched_parallelism
from gptoss_tune.train.distributed.signals import StopOnSignal
from gptoss_tune.train.evaluation import Evaluation
from gptoss_tune.train.guard.guard import Guard
from gptoss_tune.train.metrics.metrics_file import MetricsFile
from gptoss_tune.train.metrics.progress import ProgressDisplay
from gptoss_tune.train.metrics.step_metrics import StepMetrics
from gptoss_tune.train.metrics.trackers import Tracker
from gptoss_tune.train.metrics.trackio_tracker import TrackioTracker, refuse_missing_tracker
from gptoss_tune.train.metrics.wandb_tracker import WandbTracker
from gptoss_tune.train.resume.changes import Identity, identify
from gptoss_tune.train.resume.fingerprint import Place
from gptoss_tune.train.sft import WeightedSftTrainer
from gptoss_tune.train.trl_config import sft_config, training_tokenizer
from gptoss_tune.weights import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel


def train(
    recipe: Recipe, command: Sequence[str] = (), *, allow_drift: Sequence[str] = ()
) -> finish.RunSummary:
    """Train what ``recipe`` asks for and return how it went.

    Under ``accelerate launch`` every process calls this; rank 0 writes and speaks.

    Args:
        recipe: What is trained.
        command: The recipe's path and the overrides as typed, for the run card.
        allow_drift: Names of a run's fingerprint that its continuation may change.

    Raises:
        RecipeError: The recipe cannot be run, or its folder holds something else.
        DataError: A row or file cannot be trained on.
        CheckpointError: The base or a checkpoint to resume is damaged.
        MachineError: Disk, GPU or library is missing, or the launcher asks for what cannot be done.
        RunInterrupted: A signal stopped the run, or another process of it was lost; what was
            trained is in its checkpoints.
    """
    started = time.monotonic()
    with StopOnSignal() as stop, deterministic(recipe.train.deterministic):
        spread = launched_parallelism(recipe)
        refuse_unusable_gpu()  # starting CUDA takes seconds, in which a signal may come
        refuse_missing_tracker(recipe.tracking)
        state = watchdog.join()
        with (
            watchdog.watched(
                state, recipe.world.timeout_seconds, Path(recipe.train.output_dir)
            ) as watch,
            out_of_memory.explained(recipe, spread),
            FolderLock() as lock,
        ):
            return _train(recipe, command, allow_drift, spread, state, stop, watch, lock, started)


def _train(
    recipe: Recipe,
    command: Sequence[str],
    allow_drift: Sequence[str],
    spread: Parallelism,
    state: PartialState,
    stop: StopOnSignal,
    watch: watchdog.Watchdog,
    lock: FolderLock,
    started: float,
) -> finish.RunSummary:
    # Paths are copied from these lines: none is broken where a terminal ends.
    console = Console(quiet=not state.is_main_process, markup=False, emoji=False, soft_wrap=True)
    start: folder.Start = _on_main(state, lambda: folder.claim(recipe, lock))
    for note in start.notes:
        console.print(visible(note))
    base = open_checkpoint(recipe.model.name_or_path, recipe.model.revision)
    train_set, eval_set = _datasets(recipe, base, state)
    evaluator = Evaluator(recipe, load_vocabulary(base.path)) if recipe.evaluation.wanted else None
    console.print(f"data: {len(train_set)} rows to train on, {len(eval_set or ())} held out")
    device = torch.device(state.device or "cpu")
    place = Place(state.num_processes, spread, device)
    identity: Identity = _on_main(
        state, lambda: identify(recipe, start, base, train_set, eval_set, place, allow_drift)
    )
    for note in identity.notes:
        console.print(visible(note))
    if recipe.train.deterministic and device.type == "cuda":
        console.print(f"deterministic: the same bits in every run on this GPU; costs {PRICE}")
    set_seed(recipe.train.seed)
    model = _model(recipe, base, state, spread, console)
    fitted = find_batch_size.fit(recipe, base, model, train_set, state, start, spread, console)
    guard = _guard(recipe, base, start, console)
    books = StepMetrics(start.folder, recipe.data.train, device, start.checkpoint)
    trainer = _trainer(fitted.recipe, model, train_set, eval_set, guard, books, identity)
    displays = _callbacks(recipe, start.folder, identity.run_id, console)
    asked = []
    if evaluator is not None:
        asked = [Evaluation(evaluator, recipe, trainer, console, lambda: stop.requested)]
    # The watch last: it reads what the others decided.
    for callback in (*displays, *asked, stop, watch):
        trainer.add_callback(callback)
    if state.is_main_process:
        _open_record(recipe, base, start, identity, command)
        fitted.record(start.folder)
    state.wait_for_everyone()
    try:
        trainer.train(resume_from_checkpoint=str(start.checkpoint) if start.checkpoint else None)
        if stop.stopped:
            finish.interrupted(trainer, start.folder, console)
        finish.publish_adapter(trainer, start.folder)
        for evaluation in asked:
            evaluation.finish()
        eval_loss = finish.last_evaluation(trainer, console) if eval_set is not None else None
    except GuardError as error:
        finish.refused(trainer, start.folder, error, console)
        raise
    finally:
        guard.close()
        books.close()
        for callback in displays:
            callback.close()
    return finish.finish(trainer, start.folder, eval_loss, started, console)


def _on_main(state: PartialState, ask: Callable[[], Any]) -> Any:
    """Let rank 0 ask; every rank gets its answer, or its error."""
    answer: list[Any] = [None]
    if state.is_main_process:
        try:
            answer[0] = ask()
        except GptossTuneError as error:
            answer[0] = error
    if state.num_processes > 1:
        broadcast_object_list(answer)
    if isinstance(answer[0], GptossTuneError):
        raise answer[0]
    return answer[0]


def _datasets(
    recipe: Recipe, base: Checkpoint, state: PartialState
) -> tuple[Dataset, Dataset | None]:
    """Render the data on rank 0 first, so that the others read its cache."""
    vocabulary = load_vocabulary(base.path)
    held_out = recipe.data.eval is not None or recipe.data.eval_fraction is not None
    with state.main_process_first():
        train_set = load_dataset(
            recipe.data, split="train", vocabulary=vocabulary, seed=recipe.train.seed
        )
        eval_set = None
        if held_out:
            eval_set = load_dataset(
                recipe.data, split="eval", vocabulary=vocabulary, seed=recipe.train.seed
            )
    return train_set, eval_set


def _model(
    recipe: Recipe, base: Checkpoint, state: PartialState, spread: Parallelism, console: Console
) -> PeftModel:
    share = Share(state.process_index, state.num_processes) if spread == "fsdp2" else None
    built = build(recipe, base, state.device or "cpu", share)
    for note in built.notes:
        console.print(note, highlight=False)
    # Every rank read the same files: DDP has only the adapters to keep equal.
    torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        built.model, [name for name, p in built.model.named_parameters() if not p.requires_grad]
    )
    return built.model


def _trainer(
    recipe: Recipe,
    model: PeftModel,
    train_set: Dataset,
    eval_set: Dataset | None,
    guard: Guard,
    books: StepMetrics,
    identity: Identity,
) -> WeightedSftTrainer:
    tokenizer = training_tokenizer()
    # Said here, or the trainer aligns them itself and warns about it.
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
    return WeightedSftTrainer(
        model=model,
        args=sft_config(recipe),
        data_collator=Collator(model.config.pad_token_id, packed=recipe.data.packing),
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=tokenizer,
        guard=guard,
        books=books,
        identity=identity,
    )


def _guard(recipe: Recipe, base: Checkpoint, start: folder.Start, console: Console) -> Guard:
    def sources(rows: list[int]) -> list[str]:
        vocabulary = load_vocabulary(base.path)
        return row_sources(recipe.data, rows, vocabulary=vocabulary, seed=recipe.train.seed)

    return Guard(recipe.guard, start.folder, console, sources, start.checkpoint)


def _callbacks(
    recipe: Recipe, run: Path, run_id: str, console: Console
) -> list[Tracker | ProgressDisplay]:
    callbacks: list[Tracker | ProgressDisplay] = [
        MetricsFile(run / "metrics.jsonl"),
        ProgressDisplay(console),
    ]
    config = recipe.model_dump(mode="json")
    if recipe.tracking.wandb != "disabled":
        callbacks.append(WandbTracker(recipe.tracking, run, config, run_id))
    if recipe.tracking.trackio != "disabled":
        callbacks.append(TrackioTracker(recipe.tracking, run, config))
    return callbacks


def _open_record(
    recipe: Recipe,
    base: Checkpoint,
    start: folder.Start,
    identity: Identity,
    command: Sequence[str],
) -> None:
    run = start.folder
    checkpoints.set_aside_newer(run, start.step)
    # The record comes first: a folder with files and no record is taken for somebody else's.
    update_record(run, **identity.record(), status="running")
    update_record(
        run,
        recipe=recipe.model_dump(mode="json"),
        base={
            "name": base.name,
            "revision": recipe.model.revision,
            "fingerprint": base.fingerprint(),
        },
        **card.opening_facts(recipe, run, list(command)),
        environment=environment(),
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    write_text(run / RECIPE, recipe_yaml(recipe))
