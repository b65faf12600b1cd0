"""The plugin registry: names to factories, filled from the entry points of installed packages, the built-in ones included.

A package offers a plugin with one line in its pyproject.toml, under `[project.entry-points."beaconry.plugins"]`:

    "scorer/my-scorer" = "my_package.module:MyScorer"

The part before the slash is the kind, one of `KINDS`; the object is called to make the plugin: without arguments, except for
policies, which get the predictor. Nothing is imported before it is asked for.
"""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any

from beaconry.values.errors import OperatorError

GROUP = "beaconry.plugins"
KINDS = ("policy", "filter", "scorer", "cost-term", "picker")


class Registry:
    """Plugins by kind and name. One per process is enough, but nothing forbids two."""

    def __init__(self, plugins: Iterable[tuple[str, Callable[[], Any]]] = ()) -> None:
        """`plugins`: pairs of "kind/name" and a function that loads the plugin's factory."""
        self._loaders: dict[str, Callable[[], Any]] = {}
        for key, load in plugins:
            self.add(key, load)

    @classmethod
    def installed(cls) -> "Registry":
        """All plugins that installed packages offer."""
        return cls((point.name, point.load) for point in entry_points(group=GROUP))

    def add(self, key: str, load: Callable[[], Any]) -> None:
        """Add a plugin under "kind/name". Raises OperatorError if the kind is unknown or the name taken."""
        kind, slash, name = key.partition("/")
        if kind not in KINDS or not slash or not name:
            raise OperatorError(f'plugin "{key}": a plugin is named KIND/NAME, where KIND is one of {", ".join(KINDS)}')
        if key in self._loaders:
            raise OperatorError(
                f'plugin "{key}" is offered twice; uninstall or rename one of the packages that offer it'
            )
        self._loaders[key] = load

    def names(self, kind: str) -> list[str]:
        """The plugins of a kind, in order of the alphabet."""
        return sorted(key.partition("/")[2] for key in self._loaders if key.startswith(f"{kind}/"))

    def factory(self, kind: str, name: str) -> Any:
        """What makes the plugin. Raises OperatorError if there is none of that name, or if it cannot be imported."""
        load = self._loaders.get(f"{kind}/{name}")
        if load is None:
            names = self.names(kind)
            close = get_close_matches(name, names, 1)
            hint = f'did you mean "{close[0]}"?' if close else f"known: {', '.join(names) or 'none'}"
            raise OperatorError(f'no {kind} is called "{name}"; {hint}')
        try:
            return load()
        except (ImportError, AttributeError) as error:
            raise OperatorError(f'{kind} "{name}" cannot be loaded: {error}') from error
