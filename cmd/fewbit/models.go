package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fewbit/fewbit/internal/bare"
	"github.com/fewbit/fewbit/internal/report"

	"github.com/spf13/cobra"
)

// fetchScript is, in a checkout, the program that fetches what models lists;
// its manifest pins everything by SHA-256.
const (
	fetchScript   = "tools/fetch/fetch.py"
	fetchManifest = "tools/fetch/manifest.json"
	// checkoutLevels is how many folders up a checkout is looked for.
	checkoutLevels   = 6
	maxManifestBytes = 4 << 20
)

// manifest is the part of tools/fetch/manifest.json that models shows.
type manifest struct {
	root     string
	Packages map[string]struct {
		License string `json:"license"`
		Bytes   int64  `json:"bytes"`
	} `json:"packages"`
	Items map[string]manifestItem `json:"items"`
}

type manifestItem struct {
	Title   string          `json:"title"`
	Package json.RawMessage `json:"package"` // a name, or names by machine
	Files   []struct {
		To string `json:"to"` // below .deps
	} `json:"files"`
}

func newModelsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "models",
		Short: "List or fetch the models and data that fewbit is tested with",
		Args:  noSuchCommand,
		Example: `  fewbit models list
  fewbit models pull minilm-fused`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var asJSON bool
	list := &cobra.Command{
		Use: "list", Short: "List what can be fetched, and what is here already", Args: exactArgs(),
		Example: "  fewbit models list --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := openManifest()
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), map[string]any{"models": m.list()})
			}
			var b strings.Builder
			for _, e := range m.list() {
				state := "not fetched"
				if e.Present {
					state = "here: .deps/" + e.Folder
				}
				fmt.Fprintf(&b, "%-22s %-46s download %9s  %s\n", e.Name, e.Title, report.Bytes(e.Bytes), state)
			}
			return say(cmd.OutOrStdout(), "%s", b.String())
		},
	}
	list.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	pull := &cobra.Command{
		Use: "pull NAME", Short: "Fetch one of them into .deps of the checkout, verified by its SHA-256", Args: exactArgs("NAME"),
		Example: "  fewbit models pull minilm-fused",
		RunE:    func(cmd *cobra.Command, args []string) error { return pullModel(cmd, args[0]) },
	}
	cmd.AddCommand(list, pull)
	return cmd
}

// openManifest finds the checkout above the program or the working directory.
func openManifest() (*manifest, error) {
	var starts []string
	if exe, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(exe))
	}
	if wd, err := os.Getwd(); err == nil {
		starts = append(starts, wd)
	}
	for _, dir := range starts {
		for range checkoutLevels {
			st, err := os.Stat(filepath.Join(dir, fetchManifest))
			if err == nil && st.Mode().IsRegular() && st.Size() <= maxManifestBytes {
				return readManifest(dir)
			}
			dir = filepath.Dir(dir)
		}
	}
	return nil, fmt.Errorf("models: %s was not found above the program or the working directory; run this inside a checkout of fewbit", fetchManifest)
}

func readManifest(root string) (*manifest, error) {
	b, err := os.ReadFile(filepath.Join(root, fetchManifest))
	if err != nil {
		return nil, fmt.Errorf("models: %s: %w", fetchManifest, bare.Error(err))
	}
	m := &manifest{root: root}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("models: %s: %w; restore it from git", fetchManifest, err)
	}
	return m, nil
}

// modelEntry is one line of models list.
type modelEntry struct {
	Name    string `json:"name"`
	Title   string `json:"title"`
	License string `json:"license,omitempty"`
	Bytes   int64  `json:"download_bytes"`
	Present bool   `json:"present"`
	Folder  string `json:"folder"` // below .deps
}

func (m *manifest) list() []modelEntry {
	out := make([]modelEntry, 0, len(m.Items))
	for name, item := range m.Items {
		e := modelEntry{Name: name, Title: item.Title, Present: len(item.Files) > 0}
		if p, ok := m.Packages[item.packageName()]; ok {
			e.License, e.Bytes = p.License, p.Bytes
		}
		for _, f := range item.Files {
			e.Folder = filepath.ToSlash(filepath.Dir(f.To))
			if _, err := os.Stat(filepath.Join(m.root, ".deps", f.To)); err != nil {
				e.Present = false
			}
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b modelEntry) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// packageName returns the package of the item; of those that differ by
// machine, that of x86-64, which stands for all in size.
func (i manifestItem) packageName() string {
	var one string
	if json.Unmarshal(i.Package, &one) == nil {
		return one
	}
	var by map[string]string
	if json.Unmarshal(i.Package, &by) == nil {
		return by["x86_64"]
	}
	return ""
}

func pullModel(cmd *cobra.Command, name string) error {
	m, err := openManifest()
	if err != nil {
		return err
	}
	if _, ok := m.Items[name]; !ok {
		names := make([]string, 0, len(m.Items))
		for _, e := range m.list() {
			names = append(names, e.Name)
		}
		return usagef("models pull: unknown name %q; known are %s", name, strings.Join(names, ", "))
	}
	script := filepath.Join(m.root, fetchScript)
	if _, err := os.Stat(script); err != nil {
		return fmt.Errorf("models pull: %s is missing; restore it from git", fetchScript)
	}
	c := exec.CommandContext(cmd.Context(), "python3", script, name)
	c.Dir = m.root
	c.Stdout, c.Stderr = cmd.ErrOrStderr(), cmd.ErrOrStderr() // its lines are progress
	if err := c.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("models pull: python3 is not installed; install it (it is used only to fetch)")
		}
		if cmd.Context().Err() != nil {
			return cmd.Context().Err()
		}
		return fmt.Errorf("models pull %s: the fetch failed; its last line above says why", name)
	}
	return nil
}
