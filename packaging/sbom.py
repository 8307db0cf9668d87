#!/usr/bin/env python3
"""Lists the crates that the programs of the package are made of.

For each program a file PROGRAM.dep-v0, in the form that cargo-auditable has in a section of that name, for scanners
of programs (cargo audit bin, trivy, syft, osv-scanner); and for all of them extentd.cdx.json, in CycloneDX 1.5. Both
come from Cargo.lock and the features that are built, and are the same for the same tree.
"""

import argparse
import json
import pathlib
import subprocess
import tomllib
import zlib


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


class Graph:
    """The packages of the workspace and of what it depends on, without what is for tests only."""

    def __init__(self):
        host = next(line.split()[1] for line in output("rustc", "-vV").splitlines() if line.startswith("host:"))
        command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", host]
        found = json.loads(output(*command))
        self.packages = {package["id"]: package for package in found["packages"]}
        self.members = found["workspace_members"]
        # The resolution has what features could bring that only tests ask for; the tree has what is built.
        tree = ["cargo", "tree", "--locked", "--workspace", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]
        named = {tuple(line.split()[:2]) for line in output(*tree).splitlines() if line}
        built = {one for one, about in self.packages.items() if (about["name"], "v" + about["version"]) in named}
        self.edges = {}
        for node in found["resolve"]["nodes"]:
            kinds = [(one["pkg"], {kind["kind"] for kind in one["dep_kinds"]} - {"dev"}) for one in node["deps"]]
            edges = [(package, None in some) for package, some in kinds if some and package in built]
            self.edges[node["id"]] = edges
        with open(pathlib.Path(found["workspace_root"]) / "Cargo.lock", "rb") as file:
            locked = tomllib.load(file)["package"]
        self.checksums = {(one["name"], one["version"]): one.get("checksum") for one in locked}

    def program_of(self, member):
        return [one["name"] for one in self.packages[member]["targets"] if "bin" in one["kind"]]

    def is_macro(self, package):
        return any("proc-macro" in target["kind"] for target in self.packages[package]["targets"])

    def reached(self, root):
        """What `root` depends on, itself among them, in an order that does not change; whether it is in the program."""
        runs = {root: True}
        waiting = [root]
        while waiting:
            package = waiting.pop()
            for dependency, normal in self.edges[package]:
                inside = runs[package] and normal and not self.is_macro(dependency)
                if runs.get(dependency) is None or (inside and not runs[dependency]):
                    runs[dependency] = inside
                    waiting.append(dependency)
        key = lambda one: (self.packages[one]["name"], self.packages[one]["version"])
        return [(package, runs[package]) for package in sorted(runs, key=key)]

    def audited(self, root):
        listed = self.reached(root)
        index = {package: number for number, (package, _) in enumerate(listed)}
        packages = []
        for package, inside in listed:
            about = self.packages[package]
            entry = {"name": about["name"], "version": about["version"]}
            entry["source"] = "crates.io" if (about["source"] or "").startswith("registry+") else "local"
            if not inside:
                entry["kind"] = "build"
            if needed := sorted(index[one] for one, _ in self.edges[package]):
                entry["dependencies"] = needed
            if package == root:
                entry["root"] = True
            packages.append(entry)
        return json.dumps({"packages": packages}, separators=(",", ":"))

    def reference(self, package):
        about = self.packages[package]
        return f"pkg:cargo/{about['name']}@{about['version']}"

    def component(self, package, inside):
        about = self.packages[package]
        reference = self.reference(package)
        entry = {"type": "library", "bom-ref": reference, "name": about["name"], "version": about["version"]}
        entry["scope"] = "required" if inside else "excluded"
        if checksum := self.checksums.get((about["name"], about["version"])):
            entry["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        if about["license"]:
            entry["licenses"] = [{"expression": about["license"].replace("/", " OR ")}]
        entry["purl"] = reference
        return entry

    def described(self, roots, main):
        inside = {}
        for root in roots:
            for package, runs in self.reached(root):
                inside[package] = inside.get(package, False) or runs
        order = sorted(inside, key=self.reference)
        about = self.component(main, True) | {"type": "application"}
        del about["scope"]
        others = [self.component(one, inside[one]) for one in order if one != main]
        needs = lambda one: sorted({self.reference(other) for other, _ in self.edges[one]})
        return {
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": {"component": about},
            "components": others,
            "dependencies": [{"ref": self.reference(one), "dependsOn": needs(one)} for one in order],
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="where the files go")
    parser.add_argument("programs", nargs="+", help="those of the package")
    options = parser.parse_args()
    graph = Graph()
    roots = {}
    for member in graph.members:
        roots |= {program: member for program in graph.program_of(member) if program in options.programs}
    for program in options.programs:
        if program not in roots:
            parser.error(f"the workspace has no program {program}")
    for program, root in roots.items():
        (options.folder / f"{program}.dep-v0").write_bytes(zlib.compress(graph.audited(root).encode(), 9))
    described = graph.described(sorted(set(roots.values())), roots[options.programs[0]])
    (options.folder / "extentd.cdx.json").write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    main()
