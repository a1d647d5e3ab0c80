package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

const cliDoc = "../../docs/cli.md"

// TestDocs keeps docs/cli.md what the commands say of themselves.
func TestDocs(t *testing.T) {
	var b strings.Builder
	root := newRoot()
	b.WriteString("# The command line\n\nWritten by `go test ./cmd/fewbit -run TestDocs -update` from the commands themselves: do not edit.\n\n")
	b.WriteString(root.Long + "\n\n")
	b.WriteString("Errors go to standard error in one line: what, where, what to do. With `--json` standard output holds\none JSON object and nothing else. Progress goes to standard error: a bar on a terminal, plain lines otherwise.\n")
	for _, c := range root.Commands() {
		document(&b, c)
	}
	want := b.String()
	if *update {
		if err := os.WriteFile(cliDoc, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(cliDoc)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Fatalf("docs/cli.md is not what the commands say: run go test ./cmd/fewbit -run TestDocs -update")
	}
}

func document(b *strings.Builder, c *cobra.Command) {
	if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
		return
	}
	fmt.Fprintf(b, "\n## %s\n\n", c.CommandPath())
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	fmt.Fprintf(b, "%s\n\n", text)
	if c.Runnable() && !c.HasAvailableSubCommands() || c.Flags().HasAvailableFlags() {
		fmt.Fprintf(b, "```\n%s\n```\n", c.UseLine())
	}
	if c.Example != "" {
		fmt.Fprintf(b, "\nExamples:\n\n```\n%s\n```\n", unindent(c.Example))
	}
	if usages := strings.TrimRight(c.NonInheritedFlags().FlagUsages(), "\n"); usages != "" {
		fmt.Fprintf(b, "\nFlags:\n\n```\n%s\n```\n", usages)
	}
	for _, sub := range c.Commands() {
		document(b, sub)
	}
}

func unindent(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(l, "  ")
	}
	return strings.Join(lines, "\n")
}

// TestHelp: every command says what it does and shows how.
func TestHelp(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Name() == "help" || c.Name() == "completion" {
			return
		}
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: its short help is %q", c.CommandPath(), c.Short)
		}
		if !strings.Contains(c.Example, "fewbit ") && !c.Hidden {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot())
}
