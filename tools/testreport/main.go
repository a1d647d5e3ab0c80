// Command testreport reads the output of go test -json on standard input and
// prints one line a package, the output of whatever failed, and at the end how
// many tests passed, failed and were skipped, naming each skip and its reason.
// It exits 1 when anything failed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"time"
)

// event is one line of go test -json; see go doc test2json.
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

// maxOutput bounds what is kept of one test's output.
const maxOutput = 1 << 20

type report struct {
	out            io.Writer
	passed, failed int
	skips          []string
	failures       []string
	output         map[string]*strings.Builder
	start          time.Time
}

func main() {
	r := &report{out: os.Stdout, output: map[string]*strings.Builder{}, start: time.Now()}
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "testreport: reading go test -json:", err)
		os.Exit(1)
	}
	if !r.summary() {
		os.Exit(1)
	}
}

func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil && e.Action != "" {
				r.add(e)
			} else {
				fmt.Fprintf(r.out, "%s", line) // what go itself says outside the JSON stream
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *report) add(e event) {
	name := e.Package
	if e.Test != "" {
		name += "." + e.Test
	}
	switch e.Action {
	case "output":
		b := r.output[name]
		if b == nil {
			b = &strings.Builder{}
			r.output[name] = b
		}
		if b.Len() < maxOutput {
			b.WriteString(e.Output)
		}
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "pass", "fail", "skip":
		r.finish(e, name)
		delete(r.output, name)
	}
}

func (r *report) finish(e event, name string) {
	if e.Test == "" {
		if e.Action != "skip" { // a package without tests
			fmt.Fprintf(r.out, "%-4s %s (%.1fs)\n", e.Action, e.Package, e.Elapsed)
		}
		if e.Action == "fail" {
			r.show(name)
			if len(r.failures) == 0 || !strings.HasPrefix(r.failures[len(r.failures)-1], e.Package) {
				r.failures = append(r.failures, e.Package)
			}
		}
		return
	}
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
		r.failures = append(r.failures, name)
		r.show(name)
	case "skip":
		r.skips = append(r.skips, name+": "+r.reason(name))
	}
}

func (r *report) show(name string) {
	if b := r.output[name]; b != nil {
		fmt.Fprint(r.out, b.String())
	}
}

// reason returns the text that the test passed to Skip.
func (r *report) reason(name string) string {
	b := r.output[name]
	if b == nil {
		return "no reason given"
	}
	for _, l := range strings.Split(b.String(), "\n") {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "===") || strings.HasPrefix(l, "---") {
			continue
		}
		if _, text, ok := strings.Cut(l, ".go:"); ok {
			if _, after, ok := strings.Cut(text, ": "); ok {
				return after
			}
		}
		return l
	}
	return "no reason given"
}

func (r *report) summary() bool {
	sort.Strings(r.skips)
	for _, s := range r.skips {
		fmt.Fprintln(r.out, "skip", s)
	}
	for _, f := range r.failures {
		fmt.Fprintln(r.out, "FAIL", f)
	}
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped in %.0f s\n", r.passed, r.failed, len(r.skips), time.Since(r.start).Seconds())
	return len(r.failures) == 0
}
