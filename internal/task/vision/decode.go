// Package vision turns an encoded image into a model's input as Pillow and the
// image processors of Hugging Face transformers do: decode, turn upright,
// resize, crop, rescale, normalise. Resizing is bit-exact to Pillow's 8-bit
// resampler; PNG decoding is exact; JPEG decoding uses libjpeg's chroma
// upsampling and differs from it by the rounding of the inverse cosine
// transform only (see the tests for figures).
package vision

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"io"

	"golang.org/x/image/webp"
)

// Errors of this package.
var (
	// ErrDecode: the bytes are not an image that can be read.
	ErrDecode = errors.New("bad image")
	// ErrTooLarge: the image exceeds a limit of this package.
	ErrTooLarge = errors.New("image too large")
	// ErrConfig: preprocessor_config.json cannot be used with the model.
	ErrConfig = errors.New("bad image preprocessing")
	// ErrNotImage: the model's input is not an image.
	ErrNotImage = errors.New("not an image model")
)

// Limits of an image, checked before its pixels are decoded.
const (
	MaxBytes  = 64 << 20 // encoded
	MaxPixels = 32 << 20 // decoded, three bytes each
	MaxSide   = 1 << 15  // pixels of a side
	// maxScans bounds the scans of a JPEG, each of which may cost a pass over all
	// pixels for a few bytes; encoders write about ten.
	maxScans = 128
)

// Image is an 8-bit image without alpha, rows from the top, channels
// interleaved: 3 (RGB) or 1 (grey).
type Image struct {
	Width, Height, Channels int
	Pix                     []byte
}

func newImage(w, h, channels int) *Image {
	return &Image{Width: w, Height: h, Channels: channels, Pix: make([]byte, w*h*channels)}
}

// formats are recognised by their first bytes; "?" matches any byte.
var formats = []struct {
	name, magic string
	config      func(io.Reader) (image.Config, error)
	decode      func(*bytes.Reader) (image.Image, error)
}{
	{"JPEG", "\xff\xd8", jpeg.DecodeConfig, func(r *bytes.Reader) (image.Image, error) { return jpeg.Decode(r) }},
	{"PNG", "\x89PNG\r\n\x1a\n", png.DecodeConfig, func(r *bytes.Reader) (image.Image, error) { return png.Decode(r) }},
	{"WebP", "RIFF????WEBP", webp.DecodeConfig, func(r *bytes.Reader) (image.Image, error) { return webp.Decode(r) }},
}

func hasMagic(b []byte, magic string) bool {
	if len(b) < len(magic) {
		return false
	}
	for i := range len(magic) {
		if magic[i] != '?' && magic[i] != b[i] {
			return false
		}
	}
	return true
}

// Decode reads a JPEG, PNG or WebP image as RGB. Transparency is dropped, as
// Pillow's convert("RGB") does; 16-bit channels keep their upper byte, grey
// becomes three equal channels, CMYK is converted without a colour profile. Of an
// animated PNG it is the image that every viewer shows; an animated WebP is
// refused. The image is turned upright by its EXIF orientation.
func Decode(b []byte) (*Image, error) {
	if len(b) > MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(b), MaxBytes)
	}
	if len(b) == 0 {
		return nil, fmt.Errorf("%w: it has 0 bytes", ErrDecode)
	}
	for _, f := range formats {
		if !hasMagic(b, f.magic) {
			continue
		}
		c, err := f.config(bytes.NewReader(b))
		if err != nil {
			return nil, fmt.Errorf("%w: a damaged %s header (%w)", ErrDecode, f.name, err)
		}
		if err := checkSize(c.Width, c.Height); err != nil {
			return nil, err
		}
		// The mark of a scan stands nowhere within one (ITU-T T.81, B.1.1.2).
		if n := bytes.Count(b, []byte("\xff\xda")); f.name == "JPEG" && n > maxScans {
			return nil, fmt.Errorf("%w: a JPEG of %d scans, at most %d", ErrTooLarge, n, maxScans)
		}
		if f.name == "WebP" && animatedWebP(b) {
			return nil, fmt.Errorf("%w: an animated WebP; send one frame", ErrDecode)
		}
		im, err := f.decode(bytes.NewReader(b))
		if err != nil {
			return nil, fmt.Errorf("%w: a damaged %s (%w)", ErrDecode, f.name, err)
		}
		// A decoder may believe another header than DecodeConfig did.
		if err := checkSize(im.Bounds().Dx(), im.Bounds().Dy()); err != nil {
			return nil, err
		}
		switch f.name {
		case "JPEG":
			return upright(toRGB(im), jpegOrientation(b)), nil
		case "WebP":
			return upright(webpToRGB(im), webpOrientation(b)), nil
		}
		return upright(toRGB(im), pngOrientation(b)), nil
	}
	return nil, notImage(b)
}

// animatedWebP tells by the flags of the VP8X chunk (WebP container, "Extended
// File Format"), which comes first.
func animatedWebP(b []byte) bool {
	const flags, animation = 20, 1 << 1
	return len(b) > flags && string(b[12:16]) == "VP8X" && b[flags]&animation != 0
}

// magicBytes is how much of an image tells its format.
const magicBytes = 12

// CheckHeader reads only so much of an image as tells its size, and returns the
// error that Decode would for that part.
func CheckHeader(r io.Reader) error {
	b := bufio.NewReader(r)
	head, err := b.Peek(magicBytes)
	if len(head) == 0 {
		return fmt.Errorf("%w: it has 0 bytes", ErrDecode)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it cannot be read", ErrDecode)
	}
	for _, f := range formats {
		if !hasMagic(head, f.magic) {
			continue
		}
		c, err := f.config(b)
		if err != nil {
			return fmt.Errorf("%w: a damaged %s header (%w)", ErrDecode, f.name, err)
		}
		return checkSize(c.Width, c.Height)
	}
	return notImage(head)
}

func notImage(head []byte) error {
	return fmt.Errorf("%w: neither JPEG, PNG nor WebP (it begins with %q)", ErrDecode, head[:min(len(head), 8)])
}

func checkSize(w, h int) error {
	switch {
	case w < 1 || h < 1:
		return fmt.Errorf("%w: it has %dx%d pixels", ErrDecode, w, h)
	case w > MaxSide || h > MaxSide || w*h > MaxPixels:
		return fmt.Errorf("%w: %dx%d pixels, at most %d on a side and %d together", ErrTooLarge, w, h, MaxSide, MaxPixels)
	}
	return nil
}

// toRGB drops alpha without blending it.
func toRGB(im image.Image) *Image {
	b := im.Bounds()
	out := newImage(b.Dx(), b.Dy(), 3)
	switch im := im.(type) {
	case *image.YCbCr:
		ycbcrToRGB(out, im)
	case *image.NRGBA:
		out.fill(im.Pix, im.Stride, func(dst, src []byte, x int) { copy(dst, src[4*x:4*x+3]) })
	case *image.RGBA: // of a PNG without alpha
		out.fill(im.Pix, im.Stride, func(dst, src []byte, x int) {
			if src[4*x+3] == 255 {
				copy(dst, src[4*x:4*x+3])
				return
			}
			c := rgbOf(color.RGBA{src[4*x], src[4*x+1], src[4*x+2], src[4*x+3]})
			copy(dst, c[:])
		})
	case *image.NRGBA64: // big-endian
		out.fill(im.Pix, im.Stride, func(dst, src []byte, x int) { dst[0], dst[1], dst[2] = src[8*x], src[8*x+2], src[8*x+4] })
	case *image.Gray:
		out.fill(im.Pix, im.Stride, func(dst, src []byte, x int) { dst[0], dst[1], dst[2] = src[x], src[x], src[x] })
	case *image.CMYK:
		out.fill(im.Pix, im.Stride, func(dst, src []byte, x int) {
			light := 255 - uint32(src[4*x+3])
			for c := range dst {
				t := uint32(src[4*x+c])*light + 128
				dst[c] = byte(light - (t>>8+t)>>8) // Pillow's MULDIV255
			}
		})
	case *image.Paletted:
		var table [256][3]byte
		for i, c := range im.Palette {
			if i == len(table) {
				break
			}
			table[i] = rgbOf(c)
		}
		out.fill(im.Pix, im.Stride, func(dst, src []byte, x int) { copy(dst, table[src[x]][:]) })
	default:
		i := 0
		for y := b.Min.Y; y < b.Max.Y; y++ {
			for x := b.Min.X; x < b.Max.X; x++ {
				c := rgbOf(im.At(x, y))
				i += copy(out.Pix[i:], c[:])
			}
		}
	}
	return out
}

// fill sets every pixel from the rows of a decoded image, whose first pixel is
// that of pix.
func (m *Image) fill(pix []byte, stride int, set func(dst, row []byte, x int)) {
	for y := range m.Height {
		row := pix[y*stride:]
		dst := m.Pix[y*m.Width*3:]
		for x := range m.Width {
			set(dst[3*x:3*x+3], row, x)
		}
	}
}

// rgbOf returns a color without its alpha; the color of a wholly transparent
// one survives only where it is not premultiplied.
func rgbOf(c color.Color) [3]byte {
	if n, ok := c.(color.NRGBA); ok {
		return [3]byte{n.R, n.G, n.B}
	}
	n := color.NRGBA64Model.Convert(c).(color.NRGBA64)
	return [3]byte{byte(n.R >> 8), byte(n.G >> 8), byte(n.B >> 8)}
}

// gray converts RGB to luminance as Pillow's convert("L") does
// (ITU-R 601-2, 16-bit fixed point).
func (m *Image) gray() *Image {
	out := newImage(m.Width, m.Height, 1)
	for i := range out.Pix {
		p := m.Pix[3*i : 3*i+3]
		out.Pix[i] = byte((uint32(p[0])*19595 + uint32(p[1])*38470 + uint32(p[2])*7471 + 0x8000) >> 16)
	}
	return out
}
