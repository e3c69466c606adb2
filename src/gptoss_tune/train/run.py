"""One run from recipe to adapter: the order in which the rooms are called.

What can be refused is refused early: the folder is claimed and the data rendered before a gigabyte
of weights is read, and nothing is written into the folder before the recipe is known to fit it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, set_seed
from rich.console import Console
from transformers import TrainerCallback

from gptoss_tune.display import visible
from gptoss_tune.errors import GptossTuneError, GuardError, MachineError, RecipeError
from gptoss_tune.files.atomic import write_text
from gptoss_tune.harmony.dataset.kinds import kind_of
from gptoss_tune.harmony.dataset.load import row_sources
from gptoss_tune.harmony.sources.open import listed_files
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.model.build import build
from gptoss_tune.model.parallel.sharding import Share
from gptoss_tune.recipe import Recipe, recipe_yaml
from gptoss_tune.recipe.dump import by_name
from gptoss_tune.recipe.figures.sources import named_sources
from gptoss_tune.recipe.recipe import uneven_experts
from gptoss_tune.run import card, checkpoints
from gptoss_tune.run.environment import environment
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.run.lock import FolderLock
from gptoss_tune.run.record import update_record
from gptoss_tune.run.start import Start, claim
from gptoss_tune.safety.evaluator import SafetyEvaluator
from gptoss_tune.train import finish
from gptoss_tune.train.best.measured import refuse_unmeasured
from gptoss_tune.train.best.selection import Selection, selection_of
from gptoss_tune.train.chosen_experts.choice import ChoiceObserver, chosen_by
from gptoss_tune.train.context import RunContext
from gptoss_tune.train.data.row_shards import sharded
from gptoss_tune.train.distributed import watchdog
from gptoss_tune.train.distributed.agreement import refuse_disagreement
from gptoss_tune.train.distributed.context_groups import context_groups, share_rows
from gptoss_tune.train.distributed.deterministic import PRICE, deterministic
from gptoss_tune.train.distributed.device import refuse_unusable_gpu, steady_threads
from gptoss_tune.train.distributed.launcher import launched_parallelism, launched_processes
from gptoss_tune.train.distributed.signals import StopOnSignal
from gptoss_tune.train.evaluation import Evaluation
from gptoss_tune.train.guard.guard import Guard
from gptoss_tune.train.loss import LossFunction
from gptoss_tune.train.memory import find_batch_size, out_of_memory
from gptoss_tune.train.methods import METHODS, Method, Prepared
from gptoss_tune.train.metrics.by_source import HeldOut
from gptoss_tune.train.metrics.console import run_console
from gptoss_tune.train.metrics.installed import refuse_missing_tracker
from gptoss_tune.train.metrics.metrics_file import cut_back
from gptoss_tune.train.metrics.opened import trackers_of
from gptoss_tune.train.metrics.step_metrics import StepMetrics
from gptoss_tune.train.observers.observer import StepObserver
from gptoss_tune.train.observers.observers import StepObservers
from gptoss_tune.train.resume.changes import (
    Identity,
    computed_from,
    identify,
    refuse_full_disk,
)
from gptoss_tune.train.resume.expert_tile import settled_tile
from gptoss_tune.train.resume.fingerprint import batch
from gptoss_tune.train.resume.trainer_state import check_trainer_state
from gptoss_tune.train.rollouts.episodes_file import forget_episodes
from gptoss_tune.train.trainer import MethodTrainer
from gptoss_tune.train.trl_config import training_tokenizer
from gptoss_tune.weights import open_checkpoint

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel

    from gptoss_tune.weights.adapter_config import ExpertChoice


def train(
    recipe: Recipe,
    command: Sequence[str] = (),
    *,
    allow_change: Sequence[str] = (),
    callbacks: Sequence[TrainerCallback] = (),
    loss: LossFunction | None = None,
    environment: str | None = None,
) -> finish.RunSummary:
    """Train what ``recipe`` asks for and return how it went.

    Under ``accelerate launch`` every process calls this; rank 0 writes and speaks. Without a GPU it
    computes on one thread, whatever ``torch.set_num_threads`` said, unless ``OMP_NUM_THREADS`` is
    set: a number of threads is part of a run's bits.

    Args:
        recipe: What is trained.
        command: The recipe's path and the overrides as typed, for the run card.
        allow_change: Names of a run's fingerprint that its continuation may change.
        callbacks: Asked besides the run's own, after them. A ``StepObserver`` also sees batches
            and gradients, adds figures to the metrics, and is kept in checkpoints.
        loss: Of a micro-batch, in the place of the method's; a continuation has to bring the same.
        environment: ``module:Class`` that plays the episodes of a method that has them.

    Raises:
        RecipeError: The recipe cannot be run, or its folder holds something else.
        DataError: A row or file cannot be trained on.
        CheckpointError: The base or a checkpoint to resume is damaged.
        MachineError: Disk, GPU or library is missing, or the launcher asks for what cannot be done.
        RunInterrupted: A signal stopped the run, or another process of it was lost; what was
            trained is in its checkpoints.
    """
    started = time.monotonic()
    with (
        StopOnSignal() as stop,
        deterministic(recipe.train.deterministic),
        steady_threads() as steadied,
    ):
        parallelism = launched_parallelism(recipe.distributed.strategy, recipe.model, recipe.train)
        refuse_unusable_gpu()  # starting CUDA takes seconds, in which a signal may come
        refuse_missing_tracker(recipe.tracking)
        state = watchdog.join()
        with (
            watchdog.watched(
                state, recipe.distributed.timeout_seconds, Path(recipe.train.output_dir)
            ) as watch,
            out_of_memory.explained(recipe, parallelism),
            FolderLock() as lock,
        ):
            console = run_console(quiet=not state.is_main_process)
            asked = recipe.distributed
            notes = launched_processes(asked.num_processes, state.num_processes, asked.strategy)
            groups = context_groups(asked.context_parallel, torch.device(state.device or "cpu"))
            start: Start = _on_main(state, lambda: claim(recipe.train, lock))
            _say(console, (*notes, *start.notes))
            if start.checkpoint is not None:
                check_trainer_state(start.checkpoint)
            context = RunContext(
                recipe=recipe,
                command=tuple(command),
                start=start,
                base=open_checkpoint(recipe.model.name_or_path, recipe.model.revision),
                state=state,
                parallelism=parallelism,
                groups=groups,
                console=console,
                stop=stop,
                watch=watch,
                started=started,
                loss=loss,
                steadied=steadied,
                environment=environment,
            )
            tile = _on_main(state, lambda: settled_tile(context))
            return _train(replace(context, expert_tile=tile), allow_change, callbacks)


def _train(
    context: RunContext, allow_change: Sequence[str], callbacks: Sequence[TrainerCallback]
) -> finish.RunSummary:
    recipe, console, state = context.recipe, context.console, context.state
    _refuse_uneven_experts(context)
    _refuse_idle_environment(context)
    method = METHODS[recipe.method.name](recipe.method, recipe.lora)
    told: list[str] = []
    efforts: Counter[str] = Counter()
    train_set, eval_set = method.rows(context, told, efforts)
    evaluator = None
    if recipe.evaluation.wanted:
        vocabulary = load_vocabulary(context.base.path)
        seed = recipe.train.seed
        evaluator = SafetyEvaluator(recipe.evaluation, recipe.data, vocabulary, seed=seed)
    refuse_unmeasured(recipe.train, recipe.data, evaluator, eval_set)
    console.print(f"data: {len(train_set)} rows to train on, {len(eval_set or ())} held out")
    console.print(_footing(context))
    identity = _identity(context, train_set, eval_set, allow_change)
    _say(console, identity.notes)
    if recipe.train.deterministic and context.device.type == "cuda":
        console.print(f"deterministic: the same bits in every run on this GPU; costs {PRICE}")
    chosen = chosen_by(context, train_set)
    set_seed(recipe.train.seed)
    model = _model(context, None if chosen is None else chosen.choice)
    fitted = find_batch_size.fit(context, method, model, train_set)
    # The record keeps the recipe as it was asked for.
    fits = replace(context, recipe=fitted.recipe)
    rows = method.prepare(fits, model, train_set, eval_set)
    metrics = StepMetrics(context.run, recipe.data.train, context.device)
    guard = _guard(context, method)
    # The metrics first: they measure gradients that the guard may drop.
    own = [callback for callback in callbacks if isinstance(callback, StepObserver)]
    kept = [] if chosen is None else [ChoiceObserver(context.run, chosen)]
    selection = selection_of(context, identity.fingerprint)
    selecting = [] if selection is None else [selection]
    watching = (metrics, guard, *rows.observers, *kept, *selecting, *own)
    observers = StepObservers(watching, context.start.checkpoint)
    trainer = _trainer(fits, method, model, rows, observers, identity, selection)
    trackers = trackers_of(context, identity.run_id)
    asked = [] if evaluator is None else [Evaluation(evaluator, context, trainer, metrics)]
    others = [callback for callback in callbacks if callback not in own]
    # The watch last: it reads what the others decided.
    for callback in (*trackers, *selecting, *asked, *others, context.stop, context.watch):
        trainer.add_callback(callback)
    if state.is_main_process:
        _open_record(context, identity)
        fitted.record(context.run)
        update_record(context.run, efforts=dict(efforts))
        if told:
            update_record(context.run, data_warnings=told)
    state.wait_for_everyone()
    try:
        eval_loss = finish.complete(context, trainer, asked, held_out=eval_set is not None)
    except GuardError as error:
        finish.refused(trainer, guard, context, error)
        raise
    finally:
        observers.close()
        for tracker in trackers:
            tracker.close()
    return finish.finish(trainer, context, eval_loss)


def _refuse_uneven_experts(context: RunContext) -> None:
    """Refuse to spread experts that cannot be dealt out evenly, before the data are rendered.

    Raises:
        MachineError: They cannot.
    """
    experts, processes = context.base.config["num_local_experts"], context.state.num_processes
    reason = uneven_experts(experts, processes) if context.parallelism == "fsdp2" else None
    if reason is not None:
        raise MachineError(reason)


def _refuse_idle_environment(context: RunContext) -> None:
    """Refuse an environment beside a method that plays no episodes, with a ``RecipeError``."""
    name = context.recipe.method.name
    if context.environment is not None and name != "grpo":
        raise RecipeError(
            f"environment: got {context.environment!r} with method.name {name}, which plays no "
            "episodes; remove it, or set method.name to grpo"
        )


def _footing(context: RunContext) -> str:
    """Return the line that says what a step is made of, and what computes it."""
    processes, threads = context.state.num_processes, torch.get_num_threads()
    groups = context.groups
    rows = batch(context.recipe.train, context.recipe.method, groups.data_ranks)
    unit = "prompt" if context.recipe.method.name == "grpo" else "row"
    line = f"on {_count(processes, 'process', 'es')}, {_count(rows, unit)} a step"
    if groups.context_ranks > 1:
        line += f", each shared by {groups.context_ranks} processes"
    if context.device.type == "cpu":
        line += f", {_count(threads, 'thread')}{' each' if processes > 1 else ''}"
        if context.steadied:
            line += " (OMP_NUM_THREADS sets another number)"
    return line


def _count(number: int, word: str, plural: str = "s") -> str:
    return f"{number} {word}{plural if number != 1 else ''}"


def _identity(
    context: RunContext,
    train_set: Dataset,
    eval_set: Dataset | None,
    allow_change: Sequence[str],
) -> Identity:
    """Return who the run is, once all ranks are known to be started with the same."""
    state, settings = context.state, by_name(context.recipe.model_dump(mode="json"))
    _on_main(state, lambda: refuse_full_disk(context))
    now = computed_from(context, train_set, eval_set)
    refuse_disagreement(now, settings)
    return _on_main(state, lambda: identify(context, now, allow_change))


def _say(console: Console, notes: Sequence[str]) -> None:
    """Print notes that may hold text of a file, control characters made visible."""
    for note in notes:
        console.print(visible(note))


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


def _model(context: RunContext, choice: ExpertChoice | None) -> PeftModel:
    state = context.state
    sharded = context.parallelism == "fsdp2"
    share = Share(state.process_index, state.num_processes) if sharded else None
    device, tile = state.device or "cpu", context.expert_tile
    built = build(context.recipe, context.base, device, share, choice, expert_tile=tile)
    for note in built.notes:
        context.console.print(note, highlight=False)
    share_rows(built.model, context.groups)
    # Every rank read the same files: DDP has only the adapters to keep equal.
    torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        built.model, [name for name, p in built.model.named_parameters() if not p.requires_grad]
    )
    return built.model


def _trainer(
    context: RunContext,
    method: Method,
    model: PeftModel,
    rows: Prepared,
    observers: StepObservers,
    identity: Identity,
    selection: Selection | None,
) -> MethodTrainer:
    recipe, tokenizer = context.recipe, training_tokenizer()
    # Said here, or the trainer aligns them itself and warns about it.
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
    collator: Any = method.collator(model.config.pad_token_id, packed=recipe.data.packing)
    groups, sources = context.groups, named_sources(recipe.data)

    def of_rank(whole: Any) -> Any:
        return sharded(whole, groups.context_ranks, groups.context_rank)

    each = of_rank(replace(collator, by_source=True)) if sources else None
    return method.trainer(
        model=model,
        args=method.arguments(recipe.train, held_out=context.held_out, dtype=recipe.model.dtype),
        data_collator=of_rank(collator),
        train_dataset=rows.train_set,
        eval_dataset=rows.eval_set,
        processing_class=tokenizer,
        observers=observers,
        identity=identity,
        groups=groups,
        held_out=HeldOut(tuple(sources), each),
        selection=selection,
        loss=context.loss or method.loss,
        **rows.keywords,
    )


def _guard(context: RunContext, method: Method) -> Guard:
    recipe = context.recipe

    def sources(rows: list[int]) -> list[str]:
        vocabulary = load_vocabulary(context.base.path)
        seed, kind = recipe.train.seed, kind_of(recipe.method)
        return row_sources(recipe.data, rows, vocabulary=vocabulary, seed=seed, kind=kind)

    told, judged = method.sources or sources, recipe.method.name != "grpo"
    return Guard(recipe.guard, context.run, context.console, told, judges_loss=judged)


def _open_record(context: RunContext, identity: Identity) -> None:
    run, recipe, base = context.run, context.recipe, context.base
    checkpoint, step = context.start.checkpoint, context.start.step
    checkpoints.set_aside_newer(run, step)
    # Another run's checkpoint brings no lines along.
    if checkpoint is None or checkpoint.resolve().parent == run.resolve():
        _say(context.console, cut_back(RunFolder(run), step))
        forget_episodes(RunFolder(run), step)
    # The record comes first: a folder with files and no record is taken for somebody else's.
    update_record(run, **identity.record(), status="running")
    update_record(
        run,
        recipe=recipe.model_dump(mode="json"),
        base={
            "name": base.name,
            "revision": recipe.model.revision,
            "fingerprint": {
                part: identity.fingerprint[f"base.{part}"]
                for part in ("config", "weights", "content")
            },
        },
        **card.opening_facts(
            run, list(context.command), listed_files(recipe.data), recipe.train.seed
        ),
        environment=environment(),
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    write_text(RunFolder(run).recipe, recipe_yaml(recipe))
