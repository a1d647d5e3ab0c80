package pipeline

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// scratchEnv makes the test binary a process that holds a scratch folder in the
// folder it names until it is killed.
const scratchEnv = "FEWBIT_TEST_SCRATCH"

func TestMain(m *testing.M) {
	if parent := os.Getenv(scratchEnv); parent != "" {
		s, err := newScratch(parent, labPrefix)
		if err != nil {
			os.Exit(1)
		}
		if err := os.WriteFile(filepath.Join(s.path, "m1.onnx"), []byte("large"), 0o600); err != nil {
			os.Exit(1)
		}
		_, _ = os.Stdout.WriteString(s.path + "\n")
		time.Sleep(time.Minute)
	}
	os.Exit(m.Run())
}

// hold starts such a process and returns its folder.
func hold(t *testing.T, parent string) (dir string, kill func()) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), scratchEnv+"="+parent)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	kill = func() { once.Do(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }) }
	t.Cleanup(kill)
	b := make([]byte, 4096)
	n, err := out.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b[:n])), kill
}

func there(path string) bool { _, err := os.Lstat(path); return err == nil }

// TestScratchOfTheDeadIsRemoved: of two processes the killed one's folder goes
// with the next that makes one; that of the living stays, and so does what looks
// alike but is not known to be anybody's.
func TestScratchOfTheDeadIsRemoved(t *testing.T) {
	parent := t.TempDir()
	living, _ := hold(t, parent)
	dead, kill := hold(t, parent)
	kill()
	mkdir := func(name string, age time.Duration) string {
		dir := filepath.Join(parent, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(-age)
		if err := os.Chtimes(dir, when, when); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	young, old, other := mkdir(labPrefix+"young", time.Minute), mkdir(labPrefix+"old", 2*orphanAge), mkdir("other", 2*orphanAge)
	elsewhere := t.TempDir()
	if err := os.WriteFile(filepath.Join(elsewhere, scratchLock), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(parent, labPrefix+"link")
	if err := os.Symlink(elsewhere, link); err != nil {
		t.Fatal(err)
	}
	if !there(dead) {
		t.Fatal("the killed process left nothing: this test tests nothing")
	}
	s, err := newScratch(parent, labPrefix)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{living: true, dead: false, young: true, old: false, other: true, link: true, elsewhere: true, s.path: true} {
		if there(path) != want {
			t.Errorf("%s is there: %v, want %v", filepath.Base(path), !want, want)
		}
	}
	if err := s.remove(); err != nil || there(s.path) {
		t.Errorf("after remove: %v", err)
	}
}

// TestScratchUnderContention: many come and go in one folder and nobody loses
// what is his.
func TestScratchUnderContention(t *testing.T) {
	parent := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				s, err := newScratch(parent, labPrefix)
				if err != nil {
					t.Error(err)
					return
				}
				file := filepath.Join(s.path, "f")
				if err := os.WriteFile(file, nil, 0o600); err != nil {
					t.Error(err)
				}
				if !there(file) {
					t.Error("the folder is gone")
				}
				if err := s.remove(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
