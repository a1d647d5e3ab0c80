package data

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheckImages: a bad header is found wherever it is; of a large set only
// some images are decoded to the end.
func TestCheckImages(t *testing.T) {
	px := pixel(t, 9)
	folder := func(n int) string {
		dir := t.TempDir()
		for i := range n {
			class := filepath.Join(dir, []string{"cat", "dog"}[i%2])
			if err := os.MkdirAll(class, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(class, fmt.Sprintf("%04d.png", i)), px, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	const many = 3 * checkedImages
	dir := folder(many)
	if f, err := Check(t.Context(), dir); err != nil || f.Samples != many || !f.Labelled {
		t.Fatalf("%+v, %v", f, err)
	}
	whole := map[int]bool{}
	for _, i := range choose(many, 0, checkedImages) {
		whole[i] = true
	}
	for i := range many { // in the order of paths: cats first
		n := 2 * i
		if i >= many/2 {
			n = 2*(i-many/2) + 1
		}
		path := filepath.Join(dir, []string{"cat", "dog"}[n%2], fmt.Sprintf("%04d.png", n))
		if err := os.WriteFile(path, px[:len(px)-20], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Check(t.Context(), dir); errors.Is(err, ErrFormat) != whole[i] {
			t.Errorf("image %d cut off: %v", i, err)
		}
		if i%16 == 0 {
			if err := os.WriteFile(path, px[:20], 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Check(t.Context(), dir); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), filepath.Base(path)) {
				t.Errorf("image %d without a header: %v", i, err)
			}
		}
		if err := os.WriteFile(path, px, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	small := folder(4)
	path := filepath.Join(small, "dog", "0003.png")
	if err := os.WriteFile(path, px[:len(px)-20], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Check(t.Context(), small); !errors.Is(err, ErrFormat) {
		t.Errorf("one of four cut off: %v", err)
	}
}

func TestCheckEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	lines := write(t, "a.jsonl", []byte(`{"text":"a"}`+"\n"))
	arrays := write(t, "a.npz", npzOf(t, 8, map[string][]byte{"x": npy("<f4", false, []int64{2, 3}, bytesOf(ramp(6)))}))
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.png"), pixel(t, 9), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{lines, arrays, dir} {
		if f, err := Check(t.Context(), path); err != nil || f.Samples == 0 {
			t.Errorf("%s: %+v, %v", filepath.Base(path), f, err)
		}
		if _, err := Check(ctx, path); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", filepath.Base(path), err)
		}
	}
}

// TestClassNamesAreBounded: names of classes stay in memory.
func TestClassNamesAreBounded(t *testing.T) {
	var b strings.Builder
	for i := range maxClassBytes/4000 + 2 {
		fmt.Fprintf(&b, `{"text":"a","label":"%04000d"}`+"\n", i)
	}
	if _, err := Check(t.Context(), write(t, "a.jsonl", []byte(b.String()))); !errors.Is(err, ErrLabel) || !strings.Contains(err.Error(), "bytes of their names") {
		t.Errorf("%v", err)
	}
}
