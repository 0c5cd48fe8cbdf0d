"""What a machine file may say, and how its ids become one resolved Machine."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from simulator.errors import InputError, Problem
from simulator.specs.base import Case, LoadContext, Spec, is_identifier, rule_broken
from simulator.specs.catalogue import Catalogue, Kind
from simulator.specs.hardware import Device, Host, Link, Machine, Node, Power, Price
from simulator.specs.load import Loaded, in_file_order, validate
from simulator.specs.provenance import Figure, Sources
from simulator.specs.quantities import Parts
from simulator.specs.yaml_file import Document, Loc, read_document

__all__ = ["ClusterFile", "Machine", "Node", "NodeFile", "load_machine", "resolve_machine"]

INLINE = "inline"
"""Id of a machine that is written into a scenario."""

Id = str
"""The name of a catalogue file without its `.yaml`."""


class NodeFile(Spec):
    """One host with its devices and links."""

    name: str = ""
    """Of the machine; inside a composite, a short name of the node."""
    host: Id
    """Id of a host file."""
    devices: dict[Id, Parts] = Field(default_factory=dict)
    """How many of which device, in the order in which they are numbered."""
    host_link: Id
    """Id of the link between the host and each device."""
    interconnect: Id | None = None
    """Id of the link among the devices; absent, they go through the host."""
    network: Id | None = None
    """Id of the link to the clients and to other nodes."""
    price: Price | None = None
    """What the machine costs beyond its parts: chassis, assembly."""
    sources: Sources = Field(default_factory=dict)
    """Where its own figures come from."""


def _short_name(node: NodeFile) -> NodeFile:
    """`node`, if its name can stand before a dot, as in `a.gpu0`."""
    if node.name and (not is_identifier(node.name) or "." in node.name):
        raise rule_broken("write a short name of letters, digits, '_', '+' and '-', such as node-1", "name")
    return node


class ClusterFile(Spec):
    """Several nodes and the network between them and to the clients."""

    name: str = ""
    """Of the machine."""
    nodes: Annotated[list[Annotated[NodeFile, AfterValidator(_short_name)]], Field(min_length=1)]
    """Each with a short name of its own."""
    network: Id
    """Id of the link between the nodes, and to the clients."""
    sources: Sources = Field(default_factory=dict)
    """Where its own figures come from."""

    @model_validator(mode="after")
    def _nodes_have_names(self) -> Self:
        names = [node.name for node in self.nodes]
        if "" in names or len(set(names)) < len(names):
            raise rule_broken("give each node a short 'name' of its own", "nodes")
        return self


def load_machine(ref: str | Mapping[str, Any], catalogue: Catalogue, case: Case = "nominal") -> Machine:
    """The machine of an id, or of a mapping with the same keys; raises InputError with every problem."""
    if isinstance(ref, str):
        return resolve_machine(read_document(catalogue.path("machines", ref)), ref, catalogue, case)
    return resolve_machine(Document("inline machine", dict(ref), {}), INLINE, catalogue, case)


def resolve_machine(document: Document, machine_id: str, catalogue: Catalogue, case: Case) -> Machine:
    """The machine that a document describes, every id in it replaced by the record of its file."""
    file, own_figures = _read(document, case)
    figures = _load_parts(file, document, catalogue, case)
    crowded = crowding_problems(file, document, catalogue, case)
    if crowded:
        raise InputError(crowded)
    network = None if file.network is None else catalogue.link(file.network, case).record
    return Machine(
        id=machine_id,
        name=file.name or machine_id,
        nodes=tuple(_node(node, catalogue, case) for _, node in _nodes(file)),
        network=network,
        network_id=file.network,
        figures=figures + tuple(figure.under(f"machines.{machine_id}") for figure in own_figures),
    )


def _read(document: Document, case: Case) -> tuple[NodeFile | ClusterFile, tuple[Figure, ...]]:
    loaded: Loaded[Any] = validate(
        document, ClusterFile if is_cluster(document.data) else NodeFile, LoadContext(case)
    )
    return loaded.record, loaded.figures


def is_cluster(data: Any) -> bool:
    """Whether a machine mapping is a composite of nodes."""
    return isinstance(data, Mapping) and "nodes" in data


def reference_problems(
    file: NodeFile | ClusterFile, document: Document, catalogue: Catalogue, top: Loc = ()
) -> list[Problem]:
    """Ids in a machine that name no file; the machine stands at `top` in the document."""
    missing = [
        (kind, name, loc) for kind, name, loc in _references(file) if catalogue.find(kind, name) is None
    ]
    return [
        document.problem(
            (*top, *loc),
            catalogue.advice(kind, name),
            value=None if kind == "devices" else name,
            at_key=kind == "devices",
        )
        for kind, name, loc in missing
    ]


def _references(file: NodeFile | ClusterFile) -> list[tuple[Kind, str, Loc]]:
    """Every id a machine file names, with the kind and the place of it."""
    if isinstance(file, ClusterFile):
        found: list[tuple[Kind, str, Loc]] = [("links", file.network, ("network",))]
        for index, node in enumerate(file.nodes):
            found += [(kind, name, ("nodes", index, *loc)) for kind, name, loc in _references(node)]
        return found
    links = {"host_link": file.host_link, "interconnect": file.interconnect, "network": file.network}
    return [
        ("hosts", file.host, ("host",)),
        *(("devices", name, ("devices", name)) for name in file.devices),
        *(("links", name, (key,)) for key, name in links.items() if name is not None),
    ]


def _load_parts(
    file: NodeFile | ClusterFile, document: Document, catalogue: Catalogue, case: Case
) -> tuple[Figure, ...]:
    """Load every file that `file` names; their figures. Raises InputError with the problems of all."""
    problems = reference_problems(file, document, catalogue)
    figures: list[Figure] = []
    for kind, name, _ in _references(file):
        if catalogue.find(kind, name) is not None:
            try:
                figures += _part_figures(kind, name, catalogue, case)
            except InputError as error:
                problems += error.problems
    if problems:
        raise InputError(in_file_order(problems))
    return tuple({figure.key_path: figure for figure in figures}.values())


def _part_figures(kind: Kind, name: str, catalogue: Catalogue, case: Case) -> list[Figure]:
    if kind == "links":
        loaded: Loaded[Any] = catalogue.link(name, case)
    elif kind == "devices":
        loaded = catalogue.device(name, case)
    else:
        loaded = catalogue.host(name, case)
    figures = [figure.under(f"{kind}.{name}") for figure in loaded.figures]
    if kind == "hosts":
        figures += _cpu_figures(name, loaded.record, catalogue, case)
        figures += _storage_figures(name, loaded.record, catalogue, case)
    return figures


_CPU_USES = ("compute", "efficiency")
"""What a host's cpu takes from its device file; memory, price and power are the host's."""


def _cpu_figures(host_id: str, host: Host, catalogue: Catalogue, case: Case) -> list[Figure]:
    if host.cpu is None:
        return []
    name = host.cpu.device
    if catalogue.find("devices", name) is None:
        raise _cpu_error(host_id, name, catalogue, catalogue.advice("devices", name))
    loaded = catalogue.device(name, case)
    if loaded.record.kind != "cpu":
        raise _cpu_error(host_id, name, catalogue, f"is a {loaded.record.kind}; name a device of kind cpu")
    return [each.under(f"devices.{name}") for each in loaded.figures if each.key_path.startswith(_CPU_USES)]


def _storage_figures(host_id: str, host: Host, catalogue: Catalogue, case: Case) -> list[Figure]:
    if host.storage is None:
        return []
    name = host.storage.link
    if catalogue.find("links", name) is None:
        document = read_document(catalogue.path("hosts", host_id))
        advice = catalogue.advice("links", name)
        raise InputError([document.problem(("storage", "link"), advice, value=name)])
    return [figure.under(f"links.{name}") for figure in catalogue.link(name, case).figures]


def _cpu_error(host_id: str, device_id: str, catalogue: Catalogue, advice: str) -> InputError:
    document = read_document(catalogue.path("hosts", host_id))
    return InputError([document.problem(("cpu", "device"), advice, value=device_id)])


def crowding_problems(
    file: NodeFile | ClusterFile, document: Document, catalogue: Catalogue, case: Case, top: Loc = ()
) -> list[Problem]:
    """Nodes with more devices than their host can take; the machine stands at `top` in the document."""
    found = []
    for prefix, node in _nodes(file):
        count, most = sum(node.devices.values()), _max_devices(node.host, catalogue, case)
        if most is not None and count > most:
            advice = f"{count} devices, but host {node.host} takes at most {most}"
            found.append(document.problem((*top, *prefix, "devices"), advice, at_key=True))
    return found


def _max_devices(host_id: str, catalogue: Catalogue, case: Case) -> int | None:
    """What a host takes; None also where its file is missing or wrong, which is a problem of its own."""
    try:
        return catalogue.host(host_id, case).record.max_devices
    except InputError:
        return None


def _nodes(file: NodeFile | ClusterFile) -> list[tuple[Loc, NodeFile]]:
    if isinstance(file, NodeFile):
        return [((), file.model_copy(update={"name": ""}))]
    return [(("nodes", index), node) for index, node in enumerate(file.nodes)]


def _node(file: NodeFile, catalogue: Catalogue, case: Case) -> Node:
    host = catalogue.host(file.host, case).record

    def link(name: str | None) -> Link | None:
        return None if name is None else catalogue.link(name, case).record

    return Node(
        name=file.name,
        host_id=file.host,
        host=host,
        cpu=_cpu(host, catalogue, case),
        devices=tuple(
            (name, catalogue.device(name, case).record)
            for name, count in file.devices.items()
            for _ in range(count)
        ),
        host_link_id=file.host_link,
        host_link=catalogue.link(file.host_link, case).record,
        interconnect_id=file.interconnect,
        interconnect=link(file.interconnect),
        network=link(file.network),
        price_usd=0.0 if file.price is None else file.price.purchase_usd,
        storage_link=link(host.storage.link if host.storage else None),
    )


def _cpu(host: Host, catalogue: Catalogue, case: Case) -> Device | None:
    """The host's compute device: `sockets * share` of the peaks of one socket, on the host's memory."""
    if host.cpu is None:
        return None
    socket = catalogue.device(host.cpu.device, case).record
    scale = host.cpu.sockets * host.cpu.share
    return socket.model_copy(
        update={
            "compute": {precision: peak_flops * scale for precision, peak_flops in socket.compute.items()},
            "memory": host.memory,
            "power": Power(idle_w=0.0, max_w=0.0),
            "price": Price(purchase_usd=0.0),
        }
    )
