// Sbom writes what a Go program is made of, as CycloneDX, from what the linker
// left in it: the modules that are really linked, their versions and checksums.
// The same program has the same list, so there are no date and number in it.
//
//	sbom /dotgate 1.0.0 > /dotgate.cdx.json
package main

import (
	"debug/buildinfo"
	"fmt"
	"io"
	"os"
	"path"
	"runtime/debug"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: sbom PROGRAM VERSION")
		os.Exit(2)
	}
	if err := write(os.Stdout, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func write(to io.Writer, program, version string) error {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return err
	}
	return cdx.NewBOMEncoder(to, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom(info, version))
}

// bom returns the bill of materials of the program that has this info.
func bom(info *debug.BuildInfo, version string) *cdx.BOM {
	b := cdx.NewBOM()
	name := path.Base(info.Path)
	b.Metadata = &cdx.Metadata{Component: &cdx.Component{
		BOMRef: name, Type: cdx.ComponentTypeApplication, Name: name, Version: version,
	}}
	std := module("std", strings.TrimPrefix(info.GoVersion, "go"), "")
	needed, components := []string{std.BOMRef}, []cdx.Component{std}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		c := module(m.Path, m.Version, m.Sum)
		needed, components = append(needed, c.BOMRef), append(components, c)
	}
	b.Components = &components
	b.Dependencies = &[]cdx.Dependency{{Ref: name, Dependencies: &needed}}
	return b
}

func module(path, version, sum string) cdx.Component {
	purl := fmt.Sprintf("pkg:golang/%s@%s?type=module", path, strings.ReplaceAll(version, "+", "%2B"))
	c := cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: path, Version: version, PackageURL: purl}
	if sum != "" {
		c.Properties = &[]cdx.Property{{Name: "go.sum", Value: sum}}
	}
	return c
}
