package vision

import (
	"bytes"
	"compress/zlib"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// golden is made by testdata/gen_golden.py with Pillow.
type golden struct {
	Decode []struct {
		File          string
		Width, Height int
		SHA           string
	}
	Lossy []struct {
		File              string
		Width, Height, At int
	}
	Resize []struct {
		Filter, Width, Height int
		Gray                  bool
		SHA                   string
	}
	Prepare []struct {
		Name   string
		Config json.RawMessage
		File   string
		Dims   []int64
		SHA    string
	}
}

func readGolden(t testing.TB) golden {
	var g golden
	if err := json.Unmarshal(readFile(t, "golden.json"), &g); err != nil {
		t.Fatal(err)
	}
	return g
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func decodeFile(t testing.TB, name string) *Image {
	t.Helper()
	m, err := Decode(readFile(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func sha(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func TestDecodeExact(t *testing.T) {
	for _, c := range readGolden(t).Decode {
		t.Run(c.File, func(t *testing.T) {
			m := decodeFile(t, c.File)
			if m.Width != c.Width || m.Height != c.Height || sha(m.Pix) != c.SHA {
				t.Errorf("%dx%d, not the pixels of Pillow (%dx%d)", m.Width, m.Height, c.Width, c.Height)
			}
		})
	}
}

// Orientation 1 and values that mean nothing leave the picture as it is, as
// Pillow's exif_transpose does; 2 to 8 are among the goldens.
func TestOrientationOfOthers(t *testing.T) {
	mirrored := readFile(t, "exif2.jpg")
	tag := bytes.Index(mirrored, []byte{0x01, 0x12, 0, 3, 0, 0, 0, 1})
	if tag < 0 || mirrored[tag+9] != 2 {
		t.Fatal("exif2.jpg has no orientation 2 in big-endian TIFF")
	}
	want := decodeFile(t, "exif2.jpg")
	for y := range want.Height {
		for x := range want.Width / 2 {
			a, b := 3*(y*want.Width+x), 3*(y*want.Width+want.Width-1-x)
			for c := range 3 {
				want.Pix[a+c], want.Pix[b+c] = want.Pix[b+c], want.Pix[a+c]
			}
		}
	}
	for _, v := range []byte{1, 0, 9, 255} {
		b := bytes.Clone(mirrored)
		b[tag+9] = v
		m, err := Decode(b)
		if err != nil || m.Width != want.Width || !bytes.Equal(m.Pix, want.Pix) {
			t.Errorf("orientation %d: %v, the picture is turned", v, err)
		}
	}
}

// The inverse cosine transforms of Go and libjpeg round differently, by at
// most one level a sample; the colour conversion can turn that into two or
// three, and chroma at low quality a little more.
const (
	maxLossyDiff  = 4
	meanLossyDiff = 0.15
)

func TestDecodeLossy(t *testing.T) {
	z, err := zlib.NewReader(bytes.NewReader(readFile(t, "lossy.raw.z")))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range readGolden(t).Lossy {
		t.Run(c.File, func(t *testing.T) {
			m := decodeFile(t, c.File)
			if m.Width != c.Width || m.Height != c.Height {
				t.Fatalf("%dx%d, Pillow says %dx%d", m.Width, m.Height, c.Width, c.Height)
			}
			worst, sum, differ := 0, 0, 0
			for i, v := range m.Pix {
				d := int(v) - int(raw[c.At+i])
				if d < 0 {
					d = -d
				}
				worst, sum = max(worst, d), sum+d
				if d > 0 {
					differ++
				}
			}
			mean := float64(sum) / float64(len(m.Pix))
			t.Logf("max %d, mean %.3f, %.1f %% differ", worst, mean, 100*float64(differ)/float64(len(m.Pix)))
			if worst > maxLossyDiff || mean > meanLossyDiff {
				t.Errorf("max difference %d (limit %d), mean %.3f (limit %.2f)", worst, maxLossyDiff, mean, meanLossyDiff)
			}
		})
	}
}

func TestResizeExact(t *testing.T) {
	src := decodeFile(t, "rgb.png")
	for _, c := range readGolden(t).Resize {
		m := src
		if c.Gray {
			m = m.gray()
		}
		m, err := m.Resize(c.Width, c.Height, Filter(c.Filter))
		if err != nil {
			t.Fatal(err)
		}
		if sha(m.Pix) != c.SHA {
			t.Errorf("filter %d to %dx%d (gray %v) differs from Pillow", c.Filter, c.Width, c.Height, c.Gray)
		}
	}
}

func imageSpec(dims ...int64) engine.IOSpec {
	return engine.IOSpec{Inputs: []engine.IO{{Name: "pixel_values", Type: tensor.Float32, Dims: dims}}}
}

// newPreparer writes config (nil: none) and opens it.
func newPreparer(t testing.TB, spec engine.IOSpec, config []byte) (*Preparer, error) {
	dir := t.TempDir()
	if config != nil && string(config) != "null" {
		if err := os.WriteFile(filepath.Join(dir, ConfigFile), config, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return New(spec, dir)
}

func TestPrepareExact(t *testing.T) {
	for _, c := range readGolden(t).Prepare {
		t.Run(c.Name, func(t *testing.T) {
			spec := imageSpec(c.Dims...)
			p, err := newPreparer(t, spec, c.Config)
			if err != nil {
				t.Fatal(err)
			}
			f, err := p.Feeds(readFile(t, c.File))
			if err != nil {
				t.Fatal(err)
			}
			if err := engine.CheckFeeds(spec, f); err != nil {
				t.Fatal(err)
			}
			x := f["pixel_values"]
			if sha(x.Data) != c.SHA {
				t.Error("not the values of numpy and Pillow")
			}
			// NHWC, FP16 and UINT8 are the same numbers elsewhere.
			if c.Dims[1] != 3 {
				return
			}
			d := c.Dims
			for _, in := range []engine.IO{
				{Name: "x", Type: tensor.Float32, Dims: []int64{d[0], d[2], d[3], 3}},
				{Name: "x", Type: tensor.Float16, Dims: []int64{d[0], d[2], d[3], 3}},
			} {
				q, err := newPreparer(t, engine.IOSpec{Inputs: []engine.IO{in}}, c.Config)
				if err != nil {
					t.Fatal(err)
				}
				y, err := q.Tensor(readFile(t, c.File))
				if err != nil {
					t.Fatal(err)
				}
				want, _ := x.F32()
				got, _ := y.F32()
				plane := len(want) / 3
				for i := range plane {
					for ch := range 3 {
						w, g := want[ch*plane+i], got[3*i+ch]
						if in.Type == tensor.Float16 {
							w = tensor.F16ToF32(tensor.F32ToF16(w))
						}
						if math.Float32bits(w) != math.Float32bits(g) {
							t.Fatalf("%v NHWC: pixel %d channel %d is %v, want %v", in.Type, i, ch, g, w)
						}
					}
				}
			}
		})
	}
	t.Run("uint8", func(t *testing.T) {
		p, err := newPreparer(t, engine.IOSpec{Inputs: []engine.IO{{Name: "x", Type: tensor.Uint8, Dims: []int64{-1, 47, 61, 3}}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		x, err := p.Tensor(readFile(t, "rgb.png"))
		if err != nil || !bytes.Equal(x.Data, decodeFile(t, "rgb.png").Pix) {
			t.Error("a UINT8 input does not get the pixels themselves", err)
		}
	})
}

func TestConfigRefused(t *testing.T) {
	spec := imageSpec(-1, 3, 32, 32)
	for config, words := range map[string]string{
		`{`:                               "unexpected end",
		`[]`:                              "array",
		`{"do_resize":true}`:              "size is missing",
		`{"size":{"height":8,"width":9}}`: "[-1 3 32 32]",
		`{"size":{"shortest_edge":32}}`:   "do_center_crop",
		`{"size":{"longest_edge":32}}`:    "size is",
		`{"size":{"height":0,"width":9}}`: "expected 1 to",
		`{"size":1e9}`:                    "expected 1 to",
		`{"size":-1}`:                     "expected 1 to",
		`{"size":"x"}`:                    "size is",
		`{"size":32,"resample":9}`:        "resample is 9",
		`{"size":32,"do_pad":true}`:       "do_pad",
		`{"size":32,"crop_pct":0.9}`:      "crop_pct",
		`{"size":32,"do_normalize":true}`: "image_mean has 0",
		`{"size":32,"image_mean":[0.5,0.5,0.5],"image_std":[1,0,1]}`:        "no 0 in image_std",
		`{"size":32,"image_mean":[0.5,0.5],"image_std":[1,1]}`:              "expected 3",
		`{"size":32,"do_center_crop":true}`:                                 "crop_size is missing",
		`{"size":32,"rescale_factor":0}`:                                    "rescale_factor is 0",
		`{"size":28,"feature_extractor_type":"ConvNextX","crop_pct":0.875}`: "crop_pct",
	} {
		_, err := newPreparer(t, spec, []byte(config))
		if err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), ConfigFile) {
			t.Errorf("%s: %v, expected %q", config, err, words)
		}
	}
	for _, s := range []engine.IOSpec{imageSpec(-1, 4, 8, 8), imageSpec(-1, 3, 8), {}, {Inputs: []engine.IO{{Name: "x", Type: tensor.Int64, Dims: []int64{-1, 3, 8, 8}}}}} {
		if _, err := newPreparer(t, s, nil); err == nil {
			t.Errorf("%v was taken for an image model", s)
		}
	}
	if _, err := newPreparer(t, imageSpec(-1, 3, -1, -1), nil); err == nil || !strings.Contains(err.Error(), "variable") {
		t.Errorf("variable size without settings: %v", err)
	}
}
