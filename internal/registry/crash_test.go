package registry

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// crashDir, in the environment, makes this test binary the process that gets
// killed: it publishes in a loop and prints what has been acknowledged.
const crashDir = "FEWBIT_REGISTRY_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		if err := publishForever(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func publishForever(dir string) error {
	ctx := context.Background()
	r, err := Open(ctx, dir, Options{})
	if err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(uint64(os.Getpid()), 0))
	for {
		weights := strings.Repeat(fmt.Sprint(rnd.Uint64()), 1+rnd.IntN(20_000))
		body := makeZip(outside{}, zipEntry{name: "model.onnx", body: fmt.Sprint("graph ", rnd.Uint64())},
			zipEntry{name: "model.onnx_data", body: weights}, zipEntry{name: "tokenizer.json", body: "{}"})
		v, err := r.Upload(ctx, "m", bytes.NewReader(body), int64(len(body)), About{})
		if err != nil {
			return err
		}
		fmt.Println("published", v.Number)
		if err := r.Promote("m", v.ID()); err != nil {
			return err
		}
		fmt.Println("promoted", v.Number)
		if _, err := r.Path("m", ""); err != nil {
			return err
		}
		images := makeZip(outside{}, zipEntry{name: "cat/1.jpg", body: weights[:10]}, zipEntry{name: "dog/1.jpg", body: "d"})
		if _, err := r.PutDataset(ctx, "d", bytes.NewReader(images), -1, ""); err != nil {
			return err
		}
		if v.Number%5 == 0 {
			fmt.Println("deleting", v.Number-1)
			if err := r.DeleteVersion("m", fmt.Sprint(v.Number-1)); err != nil {
				return err
			}
			if err := r.GC(ctx, 0); err != nil {
				return err
			}
		}
	}
}

// outside is a testing.TB for code outside a test; makeZip only calls Helper and
// Fatal.
type outside struct{ testing.TB }

func (outside) Helper()        {}
func (outside) Fatal(a ...any) { panic(fmt.Sprint(a...)) }

// TestKilledAtAnyMoment kills the publishing process at random times. What is
// visible afterwards must be whole, what was acknowledged must be visible, and
// nothing half-made may stay.
func TestKilledAtAnyMoment(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	last := map[string]int{}
	deleted := map[int]bool{}
	for round := range rounds {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		kill := time.Duration(0)
		for lines.Scan() {
			var what string
			var n int
			if _, err := fmt.Sscan(lines.Text(), &what, &n); err != nil {
				t.Fatalf("child said %q", lines.Text())
			}
			if what == "deleting" {
				deleted[n] = true
			} else {
				last[what] = n
			}
			if kill == 0 {
				kill = time.Duration(rand.IntN(80_000)) * time.Microsecond
				time.AfterFunc(kill, func() { _ = cmd.Process.Kill() })
			}
		}
		err = cmd.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Exited() {
			t.Fatalf("round %d: the child was not killed: %v %s", round, err, stderr.String())
		}
		checkAfterCrash(t, dir, last, deleted)
	}
	t.Logf("%d kills; the last version acknowledged was %d", rounds, last["published"])
}

func checkAfterCrash(t *testing.T, dir string, last map[string]int, deleted map[int]bool) {
	t.Helper()
	r, err := Open(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	m, err := r.Model("m")
	if err != nil {
		t.Fatal(err)
	}
	there := map[int]bool{}
	for _, v := range m.Versions {
		there[v.Number] = true
		if len(v.Files) != 3 {
			t.Errorf("version %d has %d files, want 3", v.Number, len(v.Files))
		}
		if _, err := r.Path("m", v.ID()); err != nil {
			t.Error(err)
		}
	}
	for n := 1; n <= last["published"]; n++ {
		if !there[n] && !deleted[n] {
			t.Errorf("version %d was acknowledged and is gone", n)
		}
	}
	if m.Default < last["promoted"] {
		t.Errorf("default %d, but %d was promoted", m.Default, last["promoted"])
	}
	if _, _, err := r.DatasetPath(t.Context(), "d"); err != nil && !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	es, err := os.ReadDir(filepath.Join(dir, tmpDir))
	if err != nil || len(es) != 1 {
		t.Errorf("temporary files of the dead process are left: %v, %v", es, err)
	}
	if left := leftovers(t, r); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}
