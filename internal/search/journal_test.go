package search

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/report"
)

func trialOf(key string) report.Trial {
	t := report.NewTrial()
	t.Key, t.Bytes, t.Accepted = key, 7, true
	return t
}

// TestJournal: what was added is there again, a half-written last line is not.
func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j.jsonl")
	j, err := OpenJournal(path, "k", false)
	if err != nil || j.Started() {
		t.Fatal(j, err)
	}
	if err := j.Start(3, 9); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"a", "b"} {
		if err := j.Add(trialOf(k)); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.AddUnits("cpu", []Unit{{Names: []string{"n"}, Loss: 1}}); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenJournal(path, "k", false); !errors.Is(err, ErrBusy) {
		t.Errorf("opened twice: %v", err)
	}
	j.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	// Killed in the middle of any line: the whole ones before it count.
	for cut := range whole {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := OpenJournal(path, "k", false)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		n := bytes.Count(whole[:cut], []byte("\n"))
		if j.Started() != (n > 0) || len(j.Trials) != min(max(n-1, 0), 2) || len(j.Units) != max(n-3, 0) {
			t.Fatalf("cut at %d, after %d lines: %+v", cut, n, j)
		}
		if n > 0 && (j.Head.First != 3 || j.Head.Samples != 9) {
			t.Fatalf("%+v", j.Head)
		}
		j.Close()
		left, _ := os.ReadFile(path)
		if !bytes.Equal(left, bytes.Join(lines[:n], nil)) {
			t.Fatalf("cut at %d: %q is left", cut, left)
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenJournal(path, "other", false); !errors.Is(err, ErrOther) {
		t.Errorf("another search: %v", err)
	}
	j, err = OpenJournal(path, "other", true)
	if err != nil || j.Started() {
		t.Errorf("fresh: %v", err)
	}
	j.Close()
}

func TestJournalRefuses(t *testing.T) {
	head := `{"journal":"fewbit.search-journal/1","key":"k","first":1,"samples":2}` + "\n"
	for name, text := range map[string]string{
		"other file":   "{\"text\":\"hello\"}\n",
		"no end":       "some text",
		"bad samples":  strings.Replace(head, `"first":1`, `"first":-1`, 1),
		"bad line":     head + "rubbish\n",
		"long line":    head + strings.Repeat("x", maxEntry+1) + "\n",
		"many entries": head + strings.Repeat("{}\n", maxEntries+1),
	} {
		path := filepath.Join(t.TempDir(), "j")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenJournal(path, "k", false); !errors.Is(err, ErrJournal) || strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := os.ReadFile(path); string(left) != text {
			t.Errorf("%s: it was changed", name)
		}
	}
}

func FuzzJournal(f *testing.F) {
	head := `{"journal":"fewbit.search-journal/1","key":"k","first":1,"samples":2}` + "\n"
	for _, s := range []string{"", head, head + `{"trial":{"key":"a","loss":null,"bytes":3}}` + "\n", head + `{"units":{"target":"x","units":[{"names":["n"],"loss":1e300}]}}` + "\n{", head + "[]\n", "{}\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		j := &Journal{}
		whole, err := j.read(bytes.NewReader(b))
		if whole < 0 || whole > int64(len(b)) {
			t.Fatalf("%d of %d bytes", whole, len(b))
		}
		if err == nil && whole > 0 && b[whole-1] != '\n' {
			t.Fatalf("a line is not whole")
		}
	})
}
