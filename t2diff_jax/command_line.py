"""What the commands share: parsing flags, and what is wrong with the configuration told in one line."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

from t2diff_jax.config_values import ConfigError, check_overrides


def parser(config: flags.FlagHolder) -> Callable[[list[str]], list[str]]:
    """For `app.run(main, flags_parser=...)`: absl's own, of which the flag `config` names the configuration file.

    Exits with one line where the file or a `--config.key` is not there.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            check_overrides(argv)
            rest = app.parse_flags_with_usage(argv)
            config.value.to_dict()  # a file that is not there shows only now
        except ConfigError as error:
            sys.exit(f"ConfigError: {error}")
        except OSError as error:
            sys.exit(f"--config: {str(error).splitlines()[-1].strip()}")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # at the default level the checkpoint library tells every detail
        return rest

    return parse
