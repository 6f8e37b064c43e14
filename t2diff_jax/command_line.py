"""What the commands share: parsing flags, and what is wrong with the configuration told in one line."""

import argparse
import pathlib
import re
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from t2diff_jax.checkpoint import CheckpointError
from t2diff_jax.config import Config
from t2diff_jax.config_values import ConfigError, check_overrides, from_mapping, keys_named

_OF_RUN = pathlib.Path(__file__).parents[1] / "configs" / "of_run.py"


def parser(config: flags.FlagHolder, *, of_run: bool = False) -> Callable[[list[str]], list[str]]:
    """For `app.run(main, flags_parser=...)`: absl's own, of which the flag `config` names the configuration file.

    of_run: where no file is named, the configuration is that of the run in `--workdir`.

    Exits with one line where the file, the run or a `--config.key` is not there.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            check_overrides(argv)
            _check_flags(argv)
            if of_run and (workdir := _workdir_alone(argv)):
                argv.insert(1, f"--config={_OF_RUN}:{workdir}")  # in sys.argv, where ml_collections looks for overrides
            rest = app.parse_flags_with_usage(argv)
            config.value.to_dict()  # a file that is not there shows only now
        except (ConfigError, CheckpointError) as error:
            sys.exit(f"{type(error).__name__}: {error}")
        except OSError as error:
            sys.exit(f"--config: {str(error).splitlines()[-1].strip()}")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # at the default level the checkpoint library tells every detail
        return rest

    return parse


def _check_flags(argv: Sequence[str]) -> None:
    """Exits where a flag that does not exist is called as a setting is."""
    for word in argv[1 : argv.index("--") if "--" in argv else None]:
        name = re.match(r"--?([\w.]+)", word)
        if name and name[1] not in flags.FLAGS and (keys := keys_named(name[1])):
            settings = " or ".join(f"--config.{key}" for key in keys)
            sys.exit(f"--{name[1]}: no such flag; a setting is given as {settings}")


def config_of(words: Sequence[str]) -> Config:
    """The configuration that `--config=FILE` and `--config.key=value` words describe to a command.

    Raises:
      ConfigError: a word that is neither, a key that does not exist, or a value that cannot be used.
    """
    check_overrides(words)
    command, own = ["", *words], flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", sys_argv=command, flag_values=own)
    try:
        rest = own(command)[1:]
    except flags.Error as error:
        raise ConfigError(str(error)) from error
    if rest:
        raise ConfigError(f"{rest[0]}: give --config.key=value, as often as needed")
    return from_mapping(holder.value)


def _workdir_alone(argv: list[str]) -> str | None:
    """The workdir that arguments name, if they name no configuration file."""
    names = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    names.add_argument("-config", "--config")
    names.add_argument("-workdir", "--workdir")
    given, _ = names.parse_known_args(argv[1:])
    return None if "config" in given else getattr(given, "workdir", None)
