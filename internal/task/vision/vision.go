package vision

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Layout is the order of an image tensor's axes.
type Layout string

// The layouts.
const (
	NCHW Layout = "NCHW"
	NHWC Layout = "NHWC"
)

// FindLayout returns the layout and number of channels (1 or 3) of an image
// input: FP32, FP16 or UINT8 of rank 4 with the channels second or last.
// Where both fit, it is NCHW.
func FindLayout(in engine.IO) (Layout, int, error) {
	if len(in.Dims) == 4 && (in.Type == tensor.Float32 || in.Type == tensor.Float16 || in.Type == tensor.Uint8) {
		switch c := in.Dims; {
		case c[1] == 1 || c[1] == 3:
			return NCHW, int(c[1]), nil
		case c[3] == 1 || c[3] == 3:
			return NHWC, int(c[3]), nil
		}
	}
	return "", 0, fmt.Errorf("%w: input %q is %v%v, expected FP32, FP16 or UINT8 as [batch, 3, height, width] or [batch, height, width, 3]", ErrNotImage, in.Name, in.Type, in.Dims)
}

// Preparer makes a model's input from an encoded image. It is safe for use by
// many goroutines.
type Preparer struct {
	cfg      Config
	in       engine.IO
	layout   Layout
	channels int
	w, h     int           // the model's, -1 when variable
	values   [][256]uint32 // by channel and byte: bits of the value
}

// New prepares images for a model with one image input, by the
// preprocessor_config.json in dir or, without it or with dir "", by the default: the whole
// image resized to the model's height and width (bilinear), values scaled to
// -1 .. 1, RGB.
func New(spec engine.IOSpec, dir string) (*Preparer, error) {
	if len(spec.Inputs) != 1 {
		return nil, fmt.Errorf("%w: it has %d inputs, expected one image", ErrNotImage, len(spec.Inputs))
	}
	in := spec.Inputs[0]
	layout, channels, err := FindLayout(in)
	if err != nil {
		return nil, err
	}
	p := &Preparer{in: in, layout: layout, channels: channels}
	if layout == NCHW {
		p.h, p.w = int(in.Dims[2]), int(in.Dims[3])
	} else {
		p.h, p.w = int(in.Dims[1]), int(in.Dims[2])
	}
	var found bool
	if p.cfg, found, err = readConfig(dir); err != nil {
		return nil, err
	}
	if !found {
		if p.w < 1 || p.h < 1 {
			return nil, fmt.Errorf("%w: the model's height and width are variable (%v); put a %s beside it", ErrConfig, in.Dims, ConfigFile)
		}
		if err := checkSize(p.w, p.h); err != nil {
			return nil, err
		}
		p.cfg = defaultConfig(p.w, p.h)
	}
	if err := p.checkSize(); err != nil {
		return nil, err
	}
	p.tabulate()
	return p, nil
}

// Config returns the settings in use.
func (p *Preparer) Config() Config { return p.cfg }

// checkSize compares what the settings produce with what the model takes.
func (p *Preparer) checkSize() error {
	w, h := p.cfg.CropWidth, p.cfg.CropHeight
	if w == 0 {
		w, h = p.cfg.Width, p.cfg.Height
	}
	if p.cfg.ShortestEdge > 0 && p.cfg.CropWidth == 0 && (p.w > 0 || p.h > 0) {
		return bad("images get %d pixels on the shorter side and any number on the longer, the model takes %v: set do_center_crop and crop_size", p.cfg.ShortestEdge, p.in.Dims)
	}
	if w > 0 && (p.w > 0 && p.w != w || p.h > 0 && p.h != h) {
		return bad("it makes images of %dx%d (height x width), the model takes %v", h, w, p.in.Dims)
	}
	if n := len(p.cfg.Mean); n > 1 && n != p.channels {
		return bad("image_mean has %d values, the model has %d channels", n, p.channels)
	}
	return nil
}

// tabulate computes the value of every byte: float64 product rounded to
// float32, then float32 arithmetic, as numpy does it in transformers.
func (p *Preparer) tabulate() {
	p.values = make([][256]uint32, p.channels)
	for c := range p.values {
		for v := range 256 {
			x := float32(v)
			if p.cfg.Rescale > 0 {
				x = float32(float64(v) * p.cfg.Rescale)
			}
			if p.cfg.Mean != nil {
				i := min(c, len(p.cfg.Mean)-1)
				x = (x - float32(p.cfg.Mean[i])) / float32(p.cfg.Std[i])
			}
			switch p.in.Type {
			case tensor.Float32:
				p.values[c][v] = math.Float32bits(x)
			case tensor.Float16:
				p.values[c][v] = uint32(tensor.F32ToF16(x))
			default: // UINT8: the model normalises by itself
				p.values[c][v] = uint32(v)
			}
		}
	}
}

// Feeds decodes an image and returns the model's input, batch dimension 1.
func (p *Preparer) Feeds(b []byte) (engine.Feeds, error) {
	t, err := p.Tensor(b)
	if err != nil {
		return nil, err
	}
	return engine.Feeds{p.in.Name: t}, nil
}

// Tensor decodes an image and returns the model's input: [1, C, H, W] or
// [1, H, W, C].
func (p *Preparer) Tensor(b []byte) (*tensor.Tensor, error) {
	m, err := Decode(b)
	if err != nil {
		return nil, err
	}
	if m, err = p.Transform(m); err != nil {
		return nil, err
	}
	return p.pack(m)
}

// Transform resizes and crops.
func (p *Preparer) Transform(m *Image) (*Image, error) {
	if p.channels == 1 && m.Channels == 3 {
		m = m.gray()
	}
	w, h := p.cfg.Width, p.cfg.Height
	if e := p.cfg.ShortestEdge; e > 0 {
		// transformers.image_transforms.get_resize_output_image_size
		if m.Width <= m.Height {
			w, h = e, e*m.Height/m.Width
		} else {
			w, h = e*m.Width/m.Height, e
		}
	}
	if w > 0 {
		var err error
		if m, err = m.Resize(w, h, p.cfg.Resample); err != nil {
			return nil, err
		}
	}
	if p.cfg.CropWidth > 0 {
		m = m.CenterCrop(p.cfg.CropWidth, p.cfg.CropHeight)
	}
	if p.w > 0 && m.Width != p.w || p.h > 0 && m.Height != p.h {
		return nil, fmt.Errorf("%w: the image has %dx%d pixels (height x width), the model takes %v and %s does not resize", ErrConfig, m.Height, m.Width, p.in.Dims, ConfigFile)
	}
	return m, nil
}

// pack writes the pixels in the model's type and layout.
func (p *Preparer) pack(m *Image) (*tensor.Tensor, error) {
	dims := []int64{1, int64(p.channels), int64(m.Height), int64(m.Width)}
	pixels := m.Width * m.Height
	step, plane := 1, pixels // distances of neighbours and of channels
	if p.layout == NHWC {
		dims = []int64{1, int64(m.Height), int64(m.Width), int64(p.channels)}
		step, plane = p.channels, 1
	}
	t, err := tensor.New(p.in.Type, dims...)
	if err != nil {
		return nil, err
	}
	for c := range p.channels {
		table := &p.values[c]
		switch p.in.Type {
		case tensor.Float32:
			for i := range pixels {
				binary.LittleEndian.PutUint32(t.Data[4*(c*plane+i*step):], table[m.Pix[i*p.channels+c]])
			}
		case tensor.Float16:
			for i := range pixels {
				binary.LittleEndian.PutUint16(t.Data[2*(c*plane+i*step):], uint16(table[m.Pix[i*p.channels+c]]))
			}
		default:
			for i := range pixels {
				t.Data[c*plane+i*step] = byte(table[m.Pix[i*p.channels+c]])
			}
		}
	}
	return t, nil
}
