"""Every private attribute of Lightning, torch, torchmetrics and jsonargparse that this package uses, with the reason.

Private names may disappear with any release of their library. They are used only here, so that a release that removes
one breaks only one function. `TOUCHED` lists them all for a test that fails first. They were seen in lightning 2.6.6,
torch 2.14, torchmetrics 1.9 and jsonargparse 4.53.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    import lightning as L


class Touched(NamedTuple):
    """One private attribute.

    Attributes:
        owner: where it is, as "module:path.of.an.object"; for an attribute of instances, the class.
        name: the attribute.
        reason: why no public name is sufficient.
        of_instances: whether only instances have it, so that a test has to search the source of the class.
    """

    owner: str
    name: str
    reason: str
    of_instances: bool = False


TOUCHED = (
    Touched(
        "lightning.pytorch.strategies:DDPStrategy",
        "_timeout",
        "A strategy that is chosen by name ('ddp') has no other way to a shorter timeout.",
        of_instances=True,
    ),
    Touched(
        "lightning.pytorch.strategies:DDPStrategy",
        "_ddp_kwargs",
        "Only the task knows that a phase leaves parameters without a gradient; the strategy was made before.",
        of_instances=True,
    ),
    Touched(
        "lightning.pytorch:Trainer",
        "_signal_connector",
        "Lightning answers SIGTERM with a collective, in which a process that was signalled alone waits for ever.",
        of_instances=True,
    ),
    Touched(
        "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop",
        "_broadcast_sigterm_tensor",
        "Before every batch all processes ask the first one; where one has ended the others wait for the timeout.",
    ),
    Touched(
        "lightning.pytorch.cli:LightningCLI",
        "_add_subcommands",
        "The subcommands' one-line help is that of the Trainer's methods.",
    ),
    Touched(
        "lightning.pytorch.cli:LightningCLI",
        "_prepare_subcommand_parser",
        "A subcommand's description, usage and defaults can be set nowhere else.",
    ),
    Touched(
        "lightning.pytorch.cli:LightningCLI",
        "_prepare_subcommand_kwargs",
        "The checkpoint that a fit goes on from is known only once the run's folder is.",
    ),
    Touched(
        "lightning.pytorch.cli:LightningCLI",
        "_run_subcommand",
        "What is said after a signal or an error, and a CLI that only makes its objects, have no hook.",
    ),
    Touched(
        "lightning.pytorch.cli:LightningCLI",
        "_get",
        "Settings may stand below the subcommand's name or beside it.",
    ),
    Touched(
        "lightning.pytorch.cli:LightningCLI",
        "_subcommand_method_arguments",
        "Which arguments the Trainer's method has, so that only these get other defaults.",
        of_instances=True,
    ),
    Touched(
        "lightning.pytorch.cli:LightningCLI",
        "_model_class",
        "What the run is about is to come before the trainer in the help: the arguments are added by ourselves.",
        of_instances=True,
    ),
    Touched("lightning.pytorch.cli:LightningCLI", "_datamodule_class", "As `_model_class`.", of_instances=True),
    Touched(
        "jsonargparse:ArgumentParser",
        "_subcommands_action",
        "The list of subcommands, whose help is replaced.",
        of_instances=True,
    ),
    Touched("argparse:_SubParsersAction", "_choices_actions", "As `_subcommands_action`.", of_instances=True),
    Touched(
        "torch.distributed.distributed_c10d",
        "_get_default_store",
        "The processes tell each other things without a collective; the group's store is reached by no public name.",
    ),
    Touched(
        "torch.nn.parallel.distributed:DistributedDataParallel",
        "_set_params_and_buffers_to_ignore_for_model",
        "The weights of the images of one process are no parameters of the others.",
    ),
    Touched("torch:nn.Module", "_modules", "`named_children` lists a module that stands in two places once.", True),
    Touched(
        "torch:nn.Module", "_parameters", "Walking through all parameters takes longer than a pass of few images.", True
    ),
    Touched("torch:nn.Module", "_buffers", "As `_parameters`.", of_instances=True),
    Touched("torch:Tensor", "_version", "Tells whether a weight was written to since its hash was computed."),
    Touched(
        "torch:nn.Module",
        "_forward_hooks",
        "Handles of register_forward_hook are counted without a lock: hooks of two threads may get the same number.",
        of_instances=True,
    ),
    Touched("torch:nn.Module", "_forward_pre_hooks", "As `_forward_hooks`.", of_instances=True),
    Touched(
        "torch:nn.Module",
        "_compiled_call_impl",
        "Nothing public says that a module was compiled in place, by `module.compile()`.",
    ),
    Touched(
        "torch._dynamo.eval_frame:OptimizedModule",
        "_orig_mod",
        "What torch.compile was given: hooks on the compiled module's parts are silently not called.",
        of_instances=True,
    ),
    Touched("torch", "_C", "As `_current_graph_task_id`."),
    Touched("torch:_C", "_current_graph_task_id", "Nothing public says whether a backward pass runs this."),
    Touched("torchmetrics:Metric", "_defaults", "The names of a metric's states.", of_instances=True),
    Touched("torchmetrics:Metric", "_plot", "What torchmetrics' own metrics call in `plot`."),
)


def limit_group_wait(strategy: Any, limit: timedelta) -> None:
    """Limit how long a process of a DDP strategy waits for another one in a collective."""
    strategy._timeout = min(strategy._timeout or limit, limit)


def group_wait(strategy: Any) -> timedelta | None:
    """How long a process of a DDP strategy waits for another one in a collective."""
    timeout: timedelta | None = strategy._timeout
    return timeout


def find_unused_parameters(strategy: Any) -> None:
    """Let a DDP strategy accept parameters that get no gradient, unless the user has set this option."""
    strategy._ddp_kwargs.setdefault("find_unused_parameters", True)


def leave_signals_alone(trainer: L.Trainer) -> None:
    """Keep the trainer from setting signal handlers and from asking the other processes about signals."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def keep_out_of_ddp(module: nn.Module, names: Iterable[str]) -> None:
    """Make DDP neither average nor broadcast these parameters and buffers of `module`, given by name."""
    ddp: Any = nn.parallel.DistributedDataParallel
    ddp._set_params_and_buffers_to_ignore_for_model(module, list(names))


def default_store() -> Any:
    """The store of the default process group (`torch.distributed.Store`)."""
    return dist.distributed_c10d._get_default_store()


def children_of(module: nn.Module) -> dict[str, nn.Module]:
    """The children of a module by name; a child in two places is listed twice."""
    return {name: child for name, child in module._modules.items() if child is not None}


def tables_of(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """What a module holds by name: its parameters, buffers and children."""
    return module._parameters, module._buffers, module._modules


def written_to(tensor: Tensor) -> int:
    """A number that grows whenever the tensor is written to; 0 for inference tensors, which have no such number."""
    return 0 if tensor.is_inference() else tensor._version


def forward_hooks(module: nn.Module) -> OrderedDict[int, Any]:
    """The hooks after a module's forward, by the number of their handle."""
    hooks: OrderedDict[int, Any] = module._forward_hooks  # type: ignore[assignment]
    return hooks


def forward_pre_hooks(module: nn.Module) -> OrderedDict[int, Any]:
    """The hooks before a module's forward, by the number of their handle."""
    hooks: OrderedDict[int, Any] = module._forward_pre_hooks  # type: ignore[assignment]
    return hooks


def in_backward() -> bool:
    """Whether this is running inside autograd's backward pass, as when checkpointing repeats a pass."""
    return torch._C._current_graph_task_id() != -1


def _optimized_module() -> type[Any] | None:
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # nothing is compiled before this is imported
    return None if dynamo is None else dynamo.OptimizedModule


def is_compiled(module: nn.Module) -> bool:
    """Whether a module itself is compiled with torch.compile."""
    kind = _optimized_module()
    return (kind is not None and isinstance(module, kind)) or module._compiled_call_impl is not None


def uncompiled(network: nn.Module) -> nn.Module:
    """The network without torch.compile; the network itself if nothing in it is compiled.

    In a compiled module, hooks on its parts are silently not called, and functions are not seen. Each compiled module
    is replaced by its original. The modules around it are copied, with the same parameters and parts, so that the
    caller's modules stay compiled.

    Example:
        >>> inner = nn.Linear(2, 1)
        >>> uncompiled(torch.compile(inner)) is inner
        True
    """
    kind = _optimized_module()
    if kind is not None and isinstance(network, kind):
        made_of: nn.Module = network._orig_mod
        return uncompiled(made_of)
    parts = {key: None if part is None else uncompiled(part) for key, part in network._modules.items()}
    compiled = network._compiled_call_impl is not None
    if not compiled and all(part is network._modules[key] for key, part in parts.items()):
        return network
    twin = network.__new__(type(network))
    twin.__dict__.update(network.__dict__, _modules=parts)
    if compiled:
        twin.__dict__["_compiled_call_impl"] = None
    return twin


def state_defaults(metric: Any) -> dict[str, Any]:
    """The initial values of a torchmetrics metric's states, by name."""
    defaults: dict[str, Any] = metric._defaults
    return defaults


def plot_values(metric: Any, values: Any, axes: Any) -> Any:
    """Torchmetrics' plot of a metric's values."""
    return metric._plot(values, axes)


class SubcommandHooks:
    """Public names for what LightningCLI allows only in private methods; list this base class before LightningCLI.

    A subclass overrides `subcommand_help`, `complete_parser`, `subcommand_arguments` and `run_subcommand`, and calls
    this class's versions of the last two.
    """

    def subcommand_help(self, subcommand: str) -> str:
        """The first text of `optcam SUBCOMMAND --help`; its first line appears in the list of subcommands."""
        raise NotImplementedError

    def complete_parser(self, subcommand: str, parser: Any, arguments: set[str]) -> None:
        """Change a subcommand's parser; `arguments` are the arguments of the Trainer's method."""

    def subcommand_arguments(self, subcommand: str) -> dict[str, Any]:
        """The arguments for the Trainer's method."""
        arguments: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)  # type: ignore[misc]
        return arguments

    def run_subcommand(self, subcommand: str) -> None:
        """Call the Trainer's method, and the hooks before and after it."""
        super()._run_subcommand(subcommand)  # type: ignore[misc]

    def setting(self, name: str, config: Any = None) -> Any:
        """A setting, whether it is nested under the subcommand's name or next to it; None if there is none."""
        cli: Any = self
        return cli._get(cli.config if config is None else config, name)

    def configured_classes(self) -> tuple[Any, Any]:
        """The classes whose subclasses are the model and the data."""
        cli: Any = self
        return cli._model_class, cli._datamodule_class

    def _add_subcommands(self, parser: Any, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)  # type: ignore[misc]
        for choice in parser._subcommands_action._choices_actions:
            choice.help = self.subcommand_help(choice.dest).partition("\n")[0]

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)  # type: ignore[misc]
        parser.description = self.subcommand_help(subcommand)
        cli: Any = self
        self.complete_parser(subcommand, parser, set(cli._subcommand_method_arguments[subcommand]))
        return parser

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return self.subcommand_arguments(subcommand)

    def _run_subcommand(self, subcommand: str) -> None:
        self.run_subcommand(subcommand)
