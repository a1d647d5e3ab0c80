package atomicfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, f := range files {
		list = append(list, f.Name())
	}
	return list
}

func TestWrite(t *testing.T) {
	for _, fleeting := range []bool{false, true} {
		dir := t.TempDir()
		o := File{Path: filepath.Join(dir, "a"), Temp: ".part-*", Mode: 0o640, Fleeting: fleeting}
		for _, want := range []string{"first", "", "third"} {
			if err := o.WriteBytes([]byte(want)); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(o.Path); err != nil || string(got) != want {
				t.Fatalf("%q, %v: want %q", got, err, want)
			}
		}
		if st, err := os.Stat(o.Path); err != nil || st.Mode().Perm() != 0o640 {
			t.Errorf("mode %v, %v", st.Mode(), err)
		}
		if got := names(t, dir); len(got) != 1 {
			t.Errorf("left: %v", got)
		}
	}
}

// What the writer had written when it failed is neither under the name nor
// beside it.
func TestWriteFails(t *testing.T) {
	dir := t.TempDir()
	o := File{Path: filepath.Join(dir, "a"), Temp: ".part-*"}
	if err := o.WriteBytes([]byte("old")); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("the source broke off")
	err := o.Write(func(w io.Writer) error {
		if b, err := os.ReadFile(o.Path); err != nil || string(b) != "old" {
			t.Errorf("while writing: %q, %v", b, err)
		}
		if _, err := io.WriteString(w, "new, half of"); err != nil {
			t.Error(err)
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if b, err := os.ReadFile(o.Path); err != nil || string(b) != "old" {
		t.Errorf("after it: %q, %v", b, err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left: %v", got)
	}

	o.Path = dir // a name that cannot be taken
	if err := o.WriteBytes([]byte("x")); err == nil {
		t.Error("a folder was replaced by a file")
	}
	o.Path = filepath.Join(dir, "none", "a")
	if err := o.WriteBytes([]byte("x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
}
