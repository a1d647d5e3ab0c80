package vision

import (
	"fmt"
	"math"
)

// Filter is a resampling filter, numbered as Pillow's Image.Resampling and the
// field "resample" of preprocessor_config.json.
type Filter int

// The filters of Pillow.
const (
	Nearest  Filter = 0
	Lanczos  Filter = 1
	Bilinear Filter = 2
	Bicubic  Filter = 3
	Box      Filter = 4
	Hamming  Filter = 5
)

// kernels by filter (Pillow, src/libImaging/Resample.c); the support is the
// radius in source pixels at scale 1.
var kernels = map[Filter]struct {
	support float64
	at      func(float64) float64
}{
	Box:      {0.5, boxKernel},
	Bilinear: {1, bilinearKernel},
	Hamming:  {1, hammingKernel},
	Bicubic:  {2, bicubicKernel},
	Lanczos:  {3, lanczosKernel},
}

func boxKernel(x float64) float64 {
	if x > -0.5 && x <= 0.5 {
		return 1
	}
	return 0
}

func bilinearKernel(x float64) float64 { return max(1-math.Abs(x), 0) }

func hammingKernel(x float64) float64 {
	x = math.Abs(x)
	if x == 0 {
		return 1
	}
	if x >= 1 {
		return 0
	}
	x *= math.Pi
	return math.Sin(x) / x * (0.54 + 0.46*math.Cos(x))
}

func bicubicKernel(x float64) float64 {
	const a = -0.5
	x = math.Abs(x)
	if x < 1 {
		return ((a+2)*x-(a+3))*x*x + 1
	}
	if x < 2 {
		return (((x-5)*x+8)*x - 4) * a
	}
	return 0
}

func lanczosKernel(x float64) float64 {
	if x >= -3 && x < 3 {
		return sinc(x) * sinc(x/3)
	}
	return 0
}

func sinc(x float64) float64 {
	if x == 0 {
		return 1
	}
	x *= math.Pi
	return math.Sin(x) / x
}

// precision is the number of fraction bits of a coefficient: 32 bits less 8 of
// the pixel and 2 of headroom for negative lobes.
const precision = 32 - 8 - 2

// taps are the source pixels of one output pixel and their weights.
type taps struct {
	first   int
	weights []int32
}

func resampleTaps(in, out int, f Filter) []taps {
	k := kernels[f]
	scale := float64(in) / float64(out)
	stretch := max(scale, 1)
	support := k.support * stretch
	inv := 1 / stretch
	all := make([]taps, out)
	for x := range all {
		center := (float64(x) + 0.5) * scale
		lo := max(int(center-support+0.5), 0)
		hi := min(int(center+support+0.5), in)
		w := make([]float64, hi-lo)
		sum := 0.0
		for i := range w {
			w[i] = k.at((float64(i+lo) - center + 0.5) * inv)
			sum += w[i]
		}
		q := make([]int32, len(w))
		for i, v := range w {
			if sum != 0 {
				v /= sum
			}
			// Rounded half away from zero, then truncated.
			q[i] = int32(math.Copysign(0.5, v) + v*(1<<precision))
		}
		all[x] = taps{lo, q}
	}
	return all
}

func clip8(v int32) byte { return clampByte(v >> precision) }

// verticalFirst is Pillow's choice of the first pass since version 13
// (python-pillow/Pillow#9549): the vertical one when the height shrinks by more
// than twice what the width does. Versions up to 12 always began horizontally;
// the results differ by single levels.
func verticalFirst(inW, inH, w, h int) bool {
	return h < inH && inH-h > 2*(inW-w)
}

// Resize returns m at w x h pixels, equal bit for bit to the resize of Pillow
// 13: two passes, each rounded to 8 bits. It may return m itself.
func (m *Image) Resize(w, h int, f Filter) (*Image, error) {
	if err := checkSize(w, h); err != nil {
		return nil, err
	}
	if w == m.Width && h == m.Height {
		return m, nil
	}
	if f == Nearest {
		return m.nearest(w, h), nil
	}
	if _, ok := kernels[f]; !ok {
		return nil, fmt.Errorf("%w: resample %d is not a filter of Pillow (0 to 5)", ErrConfig, f)
	}
	// In either order the image in between is no larger than source or result.
	if verticalFirst(m.Width, m.Height, w, h) {
		m = m.resizeColumns(resampleTaps(m.Height, h, f))
	}
	if w != m.Width {
		m = m.resizeRows(resampleTaps(m.Width, w, f))
	}
	if h != m.Height {
		m = m.resizeColumns(resampleTaps(m.Height, h, f))
	}
	return m, nil
}

func (m *Image) resizeRows(t []taps) *Image {
	out := newImage(len(t), m.Height, m.Channels)
	n := m.Channels
	for y := range m.Height {
		row := m.Pix[y*m.Width*n : (y+1)*m.Width*n]
		dst := out.Pix[y*out.Width*n : (y+1)*out.Width*n]
		if n == 1 {
			for x := range t {
				acc := int32(1 << (precision - 1))
				p := row[t[x].first:][:len(t[x].weights)]
				for i, k := range t[x].weights {
					acc += int32(p[i]) * k
				}
				dst[x] = clip8(acc)
			}
			continue
		}
		for x := range t {
			r, g, b := int32(1<<(precision-1)), int32(1<<(precision-1)), int32(1<<(precision-1))
			p := row[t[x].first*3:]
			for i, k := range t[x].weights {
				q := p[3*i : 3*i+3 : 3*i+3]
				r += int32(q[0]) * k
				g += int32(q[1]) * k
				b += int32(q[2]) * k
			}
			dst[3*x], dst[3*x+1], dst[3*x+2] = clip8(r), clip8(g), clip8(b)
		}
	}
	return out
}

func (m *Image) resizeColumns(t []taps) *Image {
	out := newImage(m.Width, len(t), m.Channels)
	stride := m.Width * m.Channels
	acc := make([]int32, stride)
	for y := range t {
		for i := range acc {
			acc[i] = 1 << (precision - 1)
		}
		for i, k := range t[y].weights {
			row := m.Pix[(t[y].first+i)*stride:][:stride]
			for j, v := range row {
				acc[j] += int32(v) * k
			}
		}
		dst := out.Pix[y*stride:][:stride]
		for j, v := range acc {
			dst[j] = clip8(v)
		}
	}
	return out
}

// nearest is Pillow's affine transform without interpolation (Geometry.c).
func (m *Image) nearest(w, h int) *Image {
	out := newImage(w, h, m.Channels)
	n := m.Channels
	xs := nearestTaps(m.Width, w)
	for y, sy := range nearestTaps(m.Height, h) {
		for x, sx := range xs {
			copy(out.Pix[(y*w+x)*n:][:n], m.Pix[(sy*m.Width+sx)*n:][:n])
		}
	}
	return out
}

func nearestTaps(in, out int) []int {
	step := float64(in) / float64(out)
	t := make([]int, out)
	at := step * 0.5
	for i := range t {
		t[i] = min(int(at), in-1)
		at += step
	}
	return t
}

// CenterCrop cuts h x w pixels from the middle, filling with black where the
// image is smaller (transformers.image_transforms.center_crop).
func (m *Image) CenterCrop(w, h int) *Image {
	if w == m.Width && h == m.Height {
		return m
	}
	out := newImage(w, h, m.Channels)
	top, left := cropStart(m.Height, h), cropStart(m.Width, w)
	n := m.Channels
	for y := range h {
		sy := y + top
		if sy < 0 || sy >= m.Height {
			continue
		}
		from, to := max(left, 0), min(left+w, m.Width)
		if from < to {
			copy(out.Pix[(y*w+from-left)*n:], m.Pix[(sy*m.Width+from)*n:(sy*m.Width+to)*n])
		}
	}
	return out
}

// cropStart returns where a crop of size begins in an axis of have pixels;
// negative when it begins in the padding.
func cropStart(have, size int) int {
	if have >= size {
		return (have - size) / 2
	}
	// floor((have-size)/2) + ceil((size-have)/2) is 0: the crop begins at 0 of
	// the padded image, whose picture begins at ceil((size-have)/2).
	return -((size - have + 1) / 2)
}
