"""``msfusion certs``: who belongs to a group."""

from pathlib import Path

from msfusion.commands.output import emit
from msfusion.peers import certificates


def new(group: str, folder: Path, *, json: bool) -> None:
    """Make the group's authority."""
    certificates.new_group(folder, group)
    secret = certificates.AUTHORITY_KEY
    text = f"{folder}: authority of {group}; {secret} can make members, so keep it to yourself"
    emit({"folder": str(folder), "group": group}, text, json=json)


def add(name: str, folder: Path, days: int, *, json: bool) -> None:
    """Make a participant's certificate."""
    certificates.add_member(folder, name, days)
    text = (
        f"{folder}: give {name} its {name}.key, and everybody {certificates.AUTHORITY} and the certificates "
        "of all, which are the access list"
    )
    emit({"folder": str(folder), "name": name}, text, json=json)
