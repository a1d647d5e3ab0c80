package harness

import (
	"os"
	"path/filepath"
	"testing"
)

func TestResultOfAnotherProcessor(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "x.json")
	const here, below = "A family 1 model 2", "a-family-1-model-2"
	for _, c := range []struct{ what, there, want string }{
		{"there is none", "", path},
		{"the same", `{"machine": {"processor": "A family 1 model 2"}}`, path},
		{"another", `{"machine": {"processor": "A family 2 model 2"}}`, filepath.Join(folder, below, "x.json")},
		{"does not say", `{"machine": {"cpu": "A"}}`, filepath.Join(folder, below, "x.json")},
		{"no result", `{"machine": `, path},
	} {
		if c.there != "" {
			if err := os.WriteFile(path, []byte(c.there), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := pathOf(folder, "x", here); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
	if processor() == "" {
		t.Error("this processor has no name")
	}
}
