"""The exceptions of the package ``orchestrator``, as one tree.

::

    OrchestratorError
    ├── ConfigError             the configuration file has faults (config.faults)
    ├── StuckFileError          a file system does not answer (also an OSError; config.file_set)
    ├── StatusFormatError       a JSON object is not what the status contract describes (status.contract)
    ├── UnknownTunnelError      no tunnel has this name (also a LookupError; supervisor.registry)
    ├── UnknownVisitorError     no visitor of a tunnel has this id (also a LookupError; supervisor.control)
    ├── ReadOnlyError           the daemon accepts no commands (supervisor.control)
    ├── CommandConflictError    a command does not fit the state of the tunnel (supervisor.control)
    ├── NoDaemonError           no daemon answers at the socket (client)
    ├── RequestRefusedError     the daemon refused a request (client)
    ├── HistoryError            traffic is not recorded, or its file cannot be used (history.database)
    │   └── TooManyCellsError   a query asks for more than one answer may hold (history.recorder)
    ├── TooManyRequestsError    more requests are in progress than the API answers at once (process.http_connections)
    ├── ParameterError          a parameter of a request is invalid (also a ValueError; api.parameters)
    ├── BrokerError             the MQTT broker cannot be used (mqtt.broker)
    ├── DuplicateHostError      another daemon uses the same host name (mqtt.ownership)
    ├── CommandRefusedError     a command over MQTT is refused (mqtt.commands)
    ├── NoAnswerError           a host did not answer over MQTT (mqtt.reader)
    ├── SocketPathError         no path for the socket can be used (process.socket_paths)
    │   └── DaemonRunningError  another daemon runs the file, or uses the socket (process.daemon_lock)
    ├── ImportFileError         a file of another program cannot be read (authoring.source)
    ├── FileExistsHereError     a file that was to be written exists (authoring.starter)
    ├── BackgroundStartError    a daemon did not start in the background (commands.background)
    ├── EngineSilentError       a worker process does not answer (supervisor.crash_reports)
    ├── RemoteEngineError       an engine crashed in a worker process (supervisor.crash_reports)
    └── IpcError                a message of a worker process cannot be read (workers.messages)

Errors of a tunnel derive from ``tunnel.model.errors.TunnelError``. A defect is in neither tree.
"""

from __future__ import annotations


class OrchestratorError(Exception):
    """The base of every exception that this package raises for a caller to handle; its message is a sentence."""
