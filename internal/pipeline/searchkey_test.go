package pipeline

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/fewbit/fewbit/internal/quant"
)

// TestDigestOfLinks: a folder that is reached by a link, and files that are links, are
// what they lead to; a search on other data must not go on with old trials.
func TestDigestOfLinks(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real"), filepath.Join(dir, "link")
	digest := func(path string) string {
		t.Helper()
		d, err := dataDigest(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	write := func(path, s string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(real, 0o700); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(dir, "x")
	write(target, "one")
	for from, to := range map[string]string{real: link, target: filepath.Join(real, "x.png"), filepath.Join(dir, "none"): filepath.Join(real, "y.png")} {
		if err := os.Symlink(from, to); err != nil {
			t.Fatal(err)
		}
	}
	was := digest(real)
	if digest(link) != was {
		t.Error("the link to a folder has another digest than the folder")
	}
	write(target, "longer")
	if digest(real) == was {
		t.Error("the target of a link in the folder does not count")
	}
}

// TestKeyKeepsRules: what stands in an error about a rule is not lost.
func TestKeyKeepsRules(t *testing.T) {
	data := filepath.Join(t.TempDir(), "d")
	if err := os.WriteFile(data, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := &searching{Pipeline: &Pipeline{}, req: SearchRequest{Calib: data, Config: quant.Config{Rules: []quant.Rule{{Where: "line 7"}}}}}
	if _, err := s.key(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	if w := s.req.Config.Rules[0].Where; w != "line 7" {
		t.Errorf("the rule stands at %q", w)
	}
}
