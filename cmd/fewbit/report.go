package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/fewbit/fewbit/internal/atomicfile"
	"github.com/fewbit/fewbit/internal/bare"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/report"
)

// checkReport refuses a report file of another kind, or in no folder.
func checkReport(path string) error {
	if path == "" {
		return nil
	}
	switch strings.ToLower(filepath.Ext(path)) {
	case ".html", ".htm", ".json":
	default:
		return usagef("--report %s: expected a name ending in .html or .json", filepath.Base(path))
	}
	if err := checkFolder(path); err != nil {
		return fmt.Errorf("--report: %w", err)
	}
	return nil
}

// writeReport writes v to path in the form that its name asks for.
func writeReport[T any](path string, html, asJSON func(io.Writer, T) error, v T) error {
	render := html
	if strings.EqualFold(filepath.Ext(path), ".json") {
		render = asJSON
	}
	return writeFile(path, func(w io.Writer) error { return render(w, v) })
}

// showReport prints the report and writes it to path, unless that is "".
func showReport(cmd *cobra.Command, r *report.Report, asJSON bool, path string) error {
	if path != "" {
		if err := writeReport(path, report.HTML, report.WriteJSON, *r); err != nil {
			return fmt.Errorf("--report: %w", err)
		}
	}
	render := report.Text
	if asJSON {
		render = report.WriteJSON
	}
	if err := render(cmd.OutOrStdout(), *r); err != nil {
		return fmt.Errorf("write the output: %w", err)
	}
	return nil
}

// unfinished are the names of files that writeFile has not finished.
const unfinished = ".fewbit-*.tmp"

// sweepFiles removes what killed processes left unfinished in a folder of the
// caller's own.
func sweepFiles(dir string) {
	left, err := filepath.Glob(filepath.Join(dir, unfinished))
	if err != nil {
		return // a folder whose name is a pattern
	}
	for _, path := range left {
		os.Remove(path)
	}
}

// writeFile writes through a temporary file in the same folder: the old file
// stays until the new one is whole.
func writeFile(path string, write func(io.Writer) error) error {
	f := atomicfile.File{Path: path, Temp: unfinished, Mode: 0o644}
	if err := f.Write(write); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), bare.Error(err))
	}
	return nil
}
