package vision

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"testing"
)

// bombPNG is a small PNG that promises w x h pixels.
func bombPNG(w, h uint32) []byte {
	b := []byte("\x89PNG\r\n\x1a\n")
	chunk := func(kind string, body []byte) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
		at := len(b)
		b = append(append(b, kind...), body...)
		b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[at:]))
	}
	head := binary.BigEndian.AppendUint32(nil, w)
	head = binary.BigEndian.AppendUint32(head, h)
	chunk("IHDR", append(head, 8, 2, 0, 0, 0))
	chunk("IDAT", []byte{0x78, 0x9c, 3, 0, 0, 0, 0, 1})
	chunk("IEND", nil)
	return b
}

// animated puts a VP8X chunk with the flag of animations in front of a WebP's own.
func animated(b []byte) []byte {
	vp8x := []byte("VP8X\x0a\x00\x00\x00\x02\x00\x00\x00\x27\x00\x00\x1d\x00\x00") // 40x30
	out := append(append(bytes.Clone(b[:12]), vp8x...), b[12:]...)
	binary.LittleEndian.PutUint32(out[4:], uint32(len(out)-8))
	return out
}

func TestDecodeRefused(t *testing.T) {
	still := readFile(t, "rgb.png")
	jpg := readFile(t, "q90_420.jpg")
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"empty":          {nil, ErrDecode},
		"text":           {[]byte("not an image"), ErrDecode},
		"gif":            {[]byte("GIF89a\x01\x00\x01\x00\x00\x00\x00;"), ErrDecode},
		"magic only":     {still[:8], ErrDecode},
		"cut png":        {still[:len(still)/2], ErrDecode},
		"cut jpeg":       {jpg[:len(jpg)/3], ErrDecode},
		"jpeg magic":     {[]byte("\xff\xd8"), ErrDecode},
		"webp magic":     {[]byte("RIFF\x00\x00\x00\x00WEBP"), ErrDecode},
		"wide bomb":      {bombPNG(1<<31-1, 1), ErrTooLarge},
		"square bomb":    {bombPNG(30000, 30000), ErrTooLarge},
		"no pixels":      {bombPNG(0, 10), ErrDecode},
		"too many bytes": {make([]byte, MaxBytes+1), ErrTooLarge},
		"many scans":     {append(bytes.Clone(jpg), bytes.Repeat([]byte("\xff\xda\x00\x02"), maxScans+1)...), ErrTooLarge},
		"animated webp":  {animated(readFile(t, "lossless.webp")), ErrDecode},
	} {
		if _, err := Decode(c.b); !errors.Is(err, c.want) || bytes.ContainsRune([]byte(err.Error()), '\n') {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// 16 bits a channel keep their upper byte.
func TestSixteenBits(t *testing.T) {
	gray := image.NewGray16(image.Rect(0, 0, 2, 1))
	gray.SetGray16(0, 0, color.Gray16{Y: 0x12ff})
	gray.SetGray16(1, 0, color.Gray16{Y: 0xfe01})
	rgb := image.NewNRGBA64(image.Rect(0, 0, 2, 1))
	rgb.SetNRGBA64(0, 0, color.NRGBA64{R: 0x0180, G: 0x02ff, B: 0x0300, A: 0x0001}) // nearly transparent
	rgb.SetNRGBA64(1, 0, color.NRGBA64{R: 0xffff, G: 0x8000, B: 0, A: 0xffff})
	for _, c := range []struct {
		im   image.Image
		want []byte
	}{{gray, []byte{0x12, 0x12, 0x12, 0xfe, 0xfe, 0xfe}}, {rgb, []byte{1, 2, 3, 0xff, 0x80, 0}}} {
		var b bytes.Buffer
		if err := png.Encode(&b, c.im); err != nil {
			t.Fatal(err)
		}
		m, err := Decode(b.Bytes())
		if err != nil || !bytes.Equal(m.Pix, c.want) {
			t.Errorf("%T: %v %v, want %v", c.im, m, err, c.want)
		}
	}
}

func TestResizeRefused(t *testing.T) {
	m := newImage(4, 4, 3)
	for _, c := range []struct{ w, h int }{{0, 1}, {1, -1}, {MaxSide + 1, 1}, {MaxSide, MaxSide}} {
		if _, err := m.Resize(c.w, c.h, Bilinear); err == nil {
			t.Errorf("resizing to %dx%d was accepted", c.w, c.h)
		}
	}
	if _, err := m.Resize(2, 2, 17); !errors.Is(err, ErrConfig) {
		t.Errorf("an unknown filter: %v", err)
	}
}

func TestConstantStaysConstant(t *testing.T) {
	m := newImage(37, 23, 3)
	for i := range m.Pix {
		m.Pix[i] = []byte{3, 128, 255}[i%3]
	}
	for f := Nearest; f <= Hamming; f++ {
		for _, size := range [][2]int{{5, 7}, {100, 90}, {37, 1}} {
			r, err := m.Resize(size[0], size[1], f)
			if err != nil {
				t.Fatal(err)
			}
			for i, v := range r.Pix {
				if v != m.Pix[i%3] {
					t.Fatalf("filter %d to %v: value %d at %d", f, size, v, i)
				}
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.*")
	for _, p := range files {
		if b, err := os.ReadFile(p); err == nil && len(b) < 8<<10 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// The fuzzer must not spend its time on large true images.
		m, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrDecode) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if m.Width*m.Height*m.Channels != len(m.Pix) {
			t.Fatalf("%dx%dx%d with %d bytes", m.Width, m.Height, m.Channels, len(m.Pix))
		}
		r, err := m.Resize(9, 7, Bicubic)
		if err == nil {
			r.CenterCrop(5, 9)
		}
	})
}

func FuzzConfig(f *testing.F) {
	for _, c := range readGolden(f).Prepare {
		f.Add([]byte(c.Config))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConfig(b)
		if err != nil {
			if !errors.Is(err, ErrConfig) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if min(c.Width, c.Height, c.ShortestEdge, c.CropWidth, c.CropHeight) < 0 || max(c.Width, c.Height, c.CropWidth, c.CropHeight) > MaxSide {
			t.Fatalf("sizes out of range: %+v", c)
		}
	})
}

func BenchmarkPrepare(b *testing.B) {
	p, err := newPreparer(b, imageSpec(-1, 3, 224, 224), nil)
	if err != nil {
		b.Fatal(err)
	}
	m := newImage(800, 600, 3)
	for b.Loop() {
		r, err := p.Transform(m)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.pack(r); err != nil {
			b.Fatal(err)
		}
	}
}
