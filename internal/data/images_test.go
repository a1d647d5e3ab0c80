package data

import (
	"bytes"
	"errors"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// pixel is a 2x2 PNG of one color.
func pixel(t testing.TB, v byte) []byte {
	t.Helper()
	m := image.NewNRGBA(image.Rect(0, 0, 2, 2))
	for i := range 4 {
		m.Set(i%2, i/2, color.NRGBA{v, v, v, 255})
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// tree writes files (name, contents ...) as a folder and as an archive and
// returns both paths.
func tree(t testing.TB, pairs ...any) map[string]string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "set")
	for i := 0; i < len(pairs); i += 2 {
		p := filepath.Join(dir, filepath.FromSlash(pairs[i].(string)))
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, pairs[i+1].([]byte), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return map[string]string{"folder": dir, "zip": write(t, "set.zip", zipOf(t, pairs...))}
}

func TestImages(t *testing.T) {
	px := func(v byte) []byte { return pixel(t, v) }
	for name, c := range map[string]struct {
		files  []any
		ids    []string
		labels []int // nil: none
		names  []string
	}{
		"folders": {[]any{"dog/1.png", px(1), "cat/x/2.PNG", px(2), "cat/3.png", px(3), "readme.txt", []byte("hi"), "dog/.hidden.png", []byte("x"), "__MACOSX/cat/3.png", []byte("x")},
			[]string{"cat/3.png", "cat/x/2.PNG", "dog/1.png"}, []int{0, 0, 1}, []string{"cat", "dog"}},
		"wrapped":         {[]any{"top/dog/1.png", px(1), "top/cat/2.png", px(2)}, []string{"top/cat/2.png", "top/dog/1.png"}, []int{0, 1}, []string{"cat", "dog"}},
		"numbers":         {[]any{"7/1.png", px(1), "12/2.png", px(2)}, []string{"12/2.png", "7/1.png"}, []int{12, 7}, nil},
		"flat":            {[]any{"b.png", px(1), "a.png", px(2)}, []string{"a.png", "b.png"}, nil, nil},
		"one folder":      {[]any{"photos/b.png", px(1), "photos/a.png", px(2)}, []string{"photos/a.png", "photos/b.png"}, nil, nil},
		"csv":             {[]any{"b.png", px(1), "a.png", px(2), "c.png", px(3), "labels.csv", []byte("file,label\nb.png,one\r\n\"a.png\", two\n")}, []string{"a.png", "b.png"}, []int{1, 0}, []string{"one", "two"}},
		"csv numbers":     {[]any{"x/b.png", px(1), "a.png", px(2), "labels.csv", []byte("\ufeffx/b.png,3\na.png,0\n")}, []string{"a.png", "x/b.png"}, []int{0, 3}, nil},
		"csv wrapped":     {[]any{"top/b.png", px(1), "top/labels.csv", []byte("b.png,3\n")}, []string{"top/b.png"}, []int{3}, nil},
		"csv over folder": {[]any{"cat/b.png", px(1), "dog/a.png", px(1), "labels.csv", []byte("cat/b.png,3\ndog/a.png,1\n")}, []string{"cat/b.png", "dog/a.png"}, []int{3, 1}, nil},
	} {
		for form, path := range tree(t, c.files...) {
			t.Run(name+" "+form, func(t *testing.T) {
				d := open(t, path, Options{Spec: pixelSpec})
				if d.Kind() != "images" || d.Labelled() != (c.labels != nil) || !slices.Equal(d.LabelNames(), c.names) {
					t.Errorf("%s, labelled %v, names %v", d.Kind(), d.Labelled(), d.LabelNames())
				}
				if c.labels == nil && !errors.Is(RequireLabels(d), ErrNoLabels) {
					t.Error("labels are not missed")
				}
				for pass := range 2 {
					got := all(t, d)
					for i, s := range got {
						if len(got) != len(c.ids) || s.ID != c.ids[i] || s.HasLabel != (c.labels != nil) || s.HasLabel && s.Label != c.labels[i] {
							t.Errorf("pass %d: sample %d is %s, label %d %v", pass, i, s.ID, s.Label, s.HasLabel)
						}
						if err := engine.CheckFeeds(pixelSpec, s.Feeds); err != nil {
							t.Fatal(err)
						}
					}
					if err := d.Reset(); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

// Without a preprocessor_config.json values are v/127.5 - 1.
func TestImageValues(t *testing.T) {
	d := open(t, tree(t, "a.png", pixel(t, 0), "b.png", pixel(t, 255))["folder"], Options{Spec: pixelSpec, ModelDir: t.TempDir()})
	for i, s := range all(t, d) {
		for _, v := range tensor.View[float32](s.Feeds["pixels"]) {
			if v != float32(2*i-1) {
				t.Fatalf("image %d has the value %v", i, v)
			}
		}
	}
}

func TestImagesRefused(t *testing.T) {
	px := pixel(t, 1)
	for name, c := range map[string]struct {
		files []any
		o     Options
		err   error
		words []string
	}{
		"mixed":         {[]any{"a.png", px, "cat/b.png", px}, Options{Spec: pixelSpec}, ErrLabel, []string{`"a.png"`, "outside"}},
		"damaged":       {[]any{"a.png", px[:len(px)-20]}, Options{Spec: pixelSpec}, ErrFormat, []string{`"a.png"`, "damaged"}},
		"not image":     {[]any{"a.png", []byte("hello")}, Options{Spec: pixelSpec}, ErrFormat, []string{`"a.png"`, "neither JPEG"}},
		"text model":    {[]any{"a.png", px}, Options{Spec: textSpec}, ErrMismatch, []string{"holds images"}},
		"csv missing":   {[]any{"a.png", px, "labels.csv", []byte("x.png,1\n")}, Options{Spec: pixelSpec}, ErrLabel, []string{"labels.csv line 1", `"x.png"`}},
		"csv twice":     {[]any{"a.png", px, "labels.csv", []byte("a.png,1\na.png,2\n")}, Options{Spec: pixelSpec}, ErrLabel, []string{"line 2", "twice"}},
		"csv fields":    {[]any{"a.png", px, "labels.csv", []byte("a.png\n")}, Options{Spec: pixelSpec}, ErrFormat, []string{"line 1", "1 fields"}},
		"csv quotes":    {[]any{"a.png", px, "labels.csv", []byte("\"a.png,1\n")}, Options{Spec: pixelSpec}, ErrFormat, []string{"labels.csv"}},
		"csv empty":     {[]any{"a.png", px, "labels.csv", []byte("")}, Options{Spec: pixelSpec}, ErrEmpty, []string{"labels.csv"}},
		"csv no label":  {[]any{"a.png", px, "labels.csv", []byte("a.png,\n")}, Options{Spec: pixelSpec}, ErrLabel, []string{"no label"}},
		"csv outside":   {[]any{"a.png", px, "labels.csv", []byte("../a.png,1\n")}, Options{Spec: pixelSpec}, ErrLabel, []string{"no image"}},
		"csv alone, no": {[]any{"labels.csv", []byte("a.png,1\n")}, Options{Spec: pixelSpec}, ErrEmpty, nil},
	} {
		for form, path := range tree(t, c.files...) {
			if name == "csv alone, no" && form == "zip" {
				continue // neither arrays nor images: told by the archive's reader
			}
			t.Run(name+" "+form, func(t *testing.T) { refuse(t, path, c.o, c.err, c.words...) })
		}
	}
	t.Run("labels.txt", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "labels.txt"), []byte("dog\ncat\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		o := Options{Spec: pixelSpec, ModelDir: dir}
		d := open(t, tree(t, "cat/1.png", px, "dog/2.png", px)["folder"], o)
		if s := all(t, d); s[0].Label != 1 || s[1].Label != 0 {
			t.Error(s[0].Label, s[1].Label)
		}
		refuse(t, tree(t, "cat/1.png", px, "cow/2.png", px)["folder"], o, ErrLabel, `"cow"`, "labels.txt")
	})
	t.Run("empty folder", func(t *testing.T) { refuse(t, t.TempDir(), Options{Spec: pixelSpec}, ErrEmpty, "no images") })
	t.Run("one line", func(t *testing.T) {
		path := write(t, "set.zip", zipOf(t, "a\nb/x\ny.png", []byte("x")))
		if _, err := Open(path, Options{Spec: pixelSpec}); err != nil && strings.ContainsRune(err.Error(), '\n') {
			t.Error(err)
		}
		refuse(t, path, Options{Spec: pixelSpec}, ErrFormat)
	})
}
