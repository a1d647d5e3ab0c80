package access

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const secret = "0123456789abcdef0123456789abcdef"

func hashed(text string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text))) }

func TestParse(t *testing.T) {
	keys, err := Parse([]byte("# who\n\nops admin " + hashed("a") + "\n  app@eu.1 \t infer " + hashed("b") + "  \n"))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]Key{"a": {Name: "ops", Role: Admin}, "b": {Name: "app@eu.1", Role: Infer}, "c": {}, "": {}, strings.Repeat("a", MaxKeyLength+1): {}} {
		got, ok := keys.Find(text)
		if got.Name != want.Name || got.Role != want.Role || ok != (want.Name != "") {
			t.Errorf("%.20q is %+v, want %+v", text, got, want)
		}
	}
	if !keys.Has(Admin) || !keys.Has(Infer) || len(keys.List()) != 2 {
		t.Errorf("%+v", keys.List())
	}
	if !Admin.Allows(Infer) || Infer.Allows(Admin) || !Infer.Allows(Infer) {
		t.Error("an administrator may infer, and not the other way round")
	}
	var none *Keys
	if _, ok := none.Find("a"); ok || none.Has(Admin) || none.List() != nil {
		t.Error("no keys open something")
	}
}

func TestParseRefuses(t *testing.T) {
	many := ""
	for i := range MaxKeys + 1 {
		many += fmt.Sprintf("k%d infer %s\n", i, hashed(fmt.Sprint(i)))
	}
	for file, says := range map[string]string{
		secret + "\n": "fewbit keys new --stdin",
		"admin:" + hashed("a")[len("sha256:"):] + "\n": `"NAME admin sha256:HASH"`,
		"ops root " + hashed("a"):                      "role",
		"ops admin " + hashed("a")[1:]:                 "64 hexadecimal",
		"ops admin " + hashed("a") + "0":               "64 hexadecimal",
		"ops admin sha256:":                            "64 hexadecimal",
		"ops admin md5:" + strings.Repeat("0", 32):     "64 hexadecimal",
		"ops admin":                                           "expected",
		"ops admin " + hashed("a") + " x":                     "expected",
		"../ops admin " + hashed("a"):                         "bad name",
		strings.Repeat("x", 65) + " admin " + hashed("a"):     "bad name",
		"a admin " + hashed("a") + "\na infer " + hashed("b"): "line 2: the name stands twice",
		"a admin " + hashed("a") + "\nb infer " + hashed("a"): "line 2: the same key",
		many:                                    "more than 1024 keys",
		strings.Repeat("#\n", MaxFileBytes/2+1): "bytes",
	} {
		_, err := Parse([]byte(file))
		if !errors.Is(err, ErrKeys) || !strings.Contains(err.Error(), says) {
			t.Errorf("%.60q: %v, want %q", file, err, says)
		} else if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), hashed("a")[20:]) {
			t.Errorf("the error quotes the file: %v", err)
		}
	}
}

func TestAddAndRemove(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	text, err := Add(file, "ops", Admin, "")
	if err != nil || !strings.HasPrefix(text, keyPrefix) || len(text) < 40 {
		t.Fatalf("%q, %v", text, err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != keysMode {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if b, _ := os.ReadFile(file); strings.Contains(string(b), text) {
		t.Error("the file holds the key itself")
	}
	if _, err := Add(file, "ops", Infer, ""); !errors.Is(err, ErrTaken) {
		t.Errorf("the same name again: %v", err)
	}
	for _, bad := range []string{"short", strings.Repeat("x", 31), secret + " ", secret + "\n", secret + "é", strings.Repeat("x", MaxKeyLength+1)} {
		if _, err := Add(file, "app", Infer, bad); !errors.Is(err, ErrKeys) {
			t.Errorf("%.50q was taken as a key: %v", bad, err)
		}
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(file); os.WriteFile(file, append([]byte("# mine\n"), b[:len(b)-1]...), 0o640) != nil { // no newline at the end
		t.Fatal("write")
	}
	var wg sync.WaitGroup
	for i := range 8 { // at the same time, none gets lost
		wg.Go(func() {
			if _, err := Add(file, fmt.Sprintf("app%d", i), Infer, ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	keys, err := ReadFile(file)
	if err != nil || len(keys.List()) != 9 {
		t.Fatalf("%d keys, %v", len(keys.List()), err)
	}
	if k, ok := keys.Find(text); !ok || k.Name != "ops" {
		t.Errorf("%+v %v", k, ok)
	}
	if err := Remove(file, "ops"); err != nil {
		t.Fatal(err)
	}
	if err := Remove(file, "ops"); !errors.Is(err, ErrNoKey) {
		t.Errorf("removed twice: %v", err)
	}
	if b, _ := os.ReadFile(file); !strings.HasPrefix(string(b), "# mine\n") || strings.Contains(string(b), "ops") {
		t.Errorf("the file became %s", b)
	}
	if st, _ := os.Stat(file); st.Mode().Perm() != 0o640 {
		t.Errorf("the permissions became %v", st.Mode())
	}
}

// A file that changes takes effect, one that is broken does not, and no change
// opens what was closed.
func TestReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	if _, err := Open(file); !errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), filepath.Dir(file)) {
		t.Errorf("a missing file: %v", err)
	}
	write := func(s string) {
		t.Helper()
		// In one step: at 5 ms a look, a file could stay empty for two of them.
		if err := errors.Join(os.WriteFile(file+".new", []byte(s), 0o600), os.Rename(file+".new", file)); err != nil {
			t.Fatal(err)
		}
	}
	write("# none\n")
	if _, err := Open(file); err == nil || !strings.Contains(err.Error(), "fewbit keys new") {
		t.Errorf("a file without keys: %v", err)
	}
	write("ops admin " + hashed("a") + "\n")
	w := NewWatcher("", file)
	r, err := Open(file)
	if err != nil {
		t.Fatal(err)
	}
	if r.InferNeeded() || !r.Present() || !r.Has(Admin) {
		t.Error("an admin key closes the admin routes only")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done, reloaded := make(chan struct{}), make(chan error, 16)
	go func() {
		defer close(done)
		w.Run(ctx, 5*time.Millisecond, func() { reloaded <- r.Reload() })
	}()
	change := func(s string) error {
		t.Helper()
		write(s)
		select {
		case err := <-reloaded:
			return err
		case <-time.After(20 * time.Second):
			t.Fatal("the change was not seen")
			return nil
		}
	}
	if err := change("ops admin " + hashed("b") + "\napp infer " + hashed("c") + "\n"); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.Find("a"); ok {
		t.Error("a key that was taken back still opens")
	}
	if _, ok := r.Find("c"); !ok || !r.InferNeeded() || r.Count() != 2 {
		t.Error("the new key does not open")
	}
	if err := change("broken\n"); !errors.Is(err, ErrKeys) {
		t.Errorf("%v", err)
	}
	if _, ok := r.Find("b"); !ok {
		t.Error("a broken file took the keys away")
	}
	if err := change("# nobody\n"); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.Find("b"); ok || r.Count() != 0 {
		t.Error("an empty file leaves keys")
	}
	if !r.InferNeeded() || !r.Present() {
		t.Error("an empty file opened what was closed")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-reloaded:
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a removed file: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the removal was not seen")
	}
	cancel()
	<-done
	var none *Keyring
	if none.Present() || none.InferNeeded() || none.Has(Admin) || none.Reload() != nil || none.Count() != 0 {
		t.Error("a server without keys has some")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("# who\nops admin " + hashed("a") + "\n"))
	f.Add([]byte("admin:" + hashed("a")))
	f.Add([]byte(secret))
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := Parse(b)
		if err != nil {
			return
		}
		var again strings.Builder
		for _, k := range keys.List() {
			fmt.Fprintf(&again, "%s %s %s%x\n", k.Name, k.Role, hashPrefix, k.digest)
		}
		back, err := Parse([]byte(again.String()))
		if err != nil || len(back.List()) != len(keys.List()) {
			t.Errorf("%q was read and not again: %v", b, err)
		}
	})
}
