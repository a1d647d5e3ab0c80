package vision

import (
	"image"
)

// ycbcrToRGB converts with the chroma upsampling that libjpeg uses by default
// ("fancy": a triangle filter, jdsample.c); Go's own conversion repeats the
// samples, which differs by tens of levels at coloured edges.
func ycbcrToRGB(out *Image, im *image.YCbCr) {
	b := im.Bounds()
	w, h := b.Dx(), b.Dy()
	cw, ch := (w+1)/2, (h+1)/2
	var row func(cb, cr []byte, y int)
	at := func(plane []byte, y int) []byte { // row y of a chroma plane
		return plane[im.COffset(b.Min.X, b.Min.Y)+y*im.CStride:]
	}
	switch {
	case b.Min.X%2 != 0 || b.Min.Y%2 != 0:
		row = plainRow(im)
	case im.SubsampleRatio == image.YCbCrSubsampleRatio422 && cw > 2:
		row = func(cb, cr []byte, y int) {
			fancy2(cb, at(im.Cb, y)[:cw])
			fancy2(cr, at(im.Cr, y)[:cw])
		}
	case im.SubsampleRatio == image.YCbCrSubsampleRatio420 && cw > 2:
		sums := make([]int32, cw)
		row = func(cb, cr []byte, y int) {
			near := y / 2
			far := near + 1
			if y%2 == 0 {
				far = near - 1
			}
			far = min(max(far, 0), ch-1)
			fancy4(cb, sums, at(im.Cb, near)[:cw], at(im.Cb, far)[:cw])
			fancy4(cr, sums, at(im.Cr, near)[:cw], at(im.Cr, far)[:cw])
		}
	case im.SubsampleRatio == image.YCbCrSubsampleRatio440:
		row = func(cb, cr []byte, y int) {
			near := y / 2
			far, bias := near+1, int32(2)
			if y%2 == 0 {
				far, bias = near-1, 1
			}
			far = min(max(far, 0), ch-1)
			fancyRows(cb, at(im.Cb, near)[:w], at(im.Cb, far)[:w], bias)
			fancyRows(cr, at(im.Cr, near)[:w], at(im.Cr, far)[:w], bias)
		}
	default:
		row = plainRow(im)
	}
	cb, cr := make([]byte, 2*cw+2), make([]byte, 2*cw+2)
	for y := range h {
		row(cb, cr, y)
		luma := im.Y[im.YOffset(b.Min.X, b.Min.Y+y):][:w]
		dst := out.Pix[y*w*3:][:w*3]
		for x, l := range luma {
			u, v := int32(cb[x])-128, int32(cr[x])-128
			y32 := int32(l)
			// jdcolor.c: 16-bit fixed point, red and blue rounded on their own.
			dst[3*x] = clampByte(y32 + (91881*v+(1<<15))>>16)
			dst[3*x+1] = clampByte(y32 + (-22554*u-46802*v+(1<<15))>>16)
			dst[3*x+2] = clampByte(y32 + (116130*u+(1<<15))>>16)
		}
	}
}

func clampByte(v int32) byte {
	if v < 0 {
		return 0
	}
	if v > 255 {
		return 255
	}
	return byte(v)
}

// plainRow repeats chroma samples.
func plainRow(im *image.YCbCr) func(cb, cr []byte, y int) {
	b := im.Bounds()
	return func(cb, cr []byte, y int) {
		for x := range b.Dx() {
			o := im.COffset(b.Min.X+x, b.Min.Y+y)
			cb[x], cr[x] = im.Cb[o], im.Cr[o]
		}
	}
}

// fancy2 doubles a row (h2v1_fancy_upsample): 3/4 of the nearer sample, 1/4 of
// the farther.
func fancy2(dst, src []byte) {
	n := len(src)
	for i, s := range src {
		v := 3 * int32(s)
		left, right := int32(s)*4, int32(s)*4
		if i > 0 {
			left = v + int32(src[i-1]) + 1
		}
		if i < n-1 {
			right = v + int32(src[i+1]) + 2
		}
		dst[2*i], dst[2*i+1] = byte(left>>2), byte(right>>2)
	}
}

// fancy4 doubles a row while mixing it with a neighbour (h2v2_fancy_upsample).
func fancy4(dst []byte, sums []int32, near, far []byte) {
	n := len(near)
	for i := range near {
		sums[i] = 3*int32(near[i]) + int32(far[i])
	}
	for i, s := range sums {
		left, right := s*4+8, s*4+7
		if i > 0 {
			left = s*3 + sums[i-1] + 8
		}
		if i < n-1 {
			right = s*3 + sums[i+1] + 7
		}
		dst[2*i], dst[2*i+1] = byte(left>>4), byte(right>>4)
	}
}

// fancyRows mixes two rows (h1v2_fancy_upsample of libjpeg-turbo).
func fancyRows(dst, near, far []byte, bias int32) {
	for i := range near {
		dst[i] = byte((3*int32(near[i]) + int32(far[i]) + bias) >> 2)
	}
}

// webpToRGB converts a lossy WebP as libwebp does (src/dsp/yuv.h and
// upsampling.c): limited-range BT.601 in 14-bit fixed point and bilinear
// chroma. A lossless one is RGB already.
func webpToRGB(im image.Image) *Image {
	var yc *image.YCbCr
	switch im := im.(type) {
	case *image.YCbCr:
		yc = im
	case *image.NYCbCrA:
		yc = &im.YCbCr
	default:
		return toRGB(im)
	}
	b := yc.Bounds()
	out := newImage(b.Dx(), b.Dy(), 3)
	w, h := out.Width, out.Height
	ch := (h + 1) / 2
	us, vs := make([]byte, w), make([]byte, w)
	for y := range h {
		near := y / 2
		far := near + 1
		if y%2 == 0 {
			far = near - 1
		}
		far = min(max(far, 0), ch-1)
		for _, p := range []struct{ dst, plane []byte }{{us, yc.Cb}, {vs, yc.Cr}} {
			webpChroma(p.dst, p.plane[near*yc.CStride:], p.plane[far*yc.CStride:])
		}
		luma := yc.Y[y*yc.YStride:][:w]
		dst := out.Pix[y*w*3:][:w*3]
		for x, l := range luma {
			yy := int32(l) * 19077 >> 8
			u, v := int32(us[x]), int32(vs[x])
			dst[3*x] = clampByte((yy + v*26149>>8 - 14234) >> 6)
			dst[3*x+1] = clampByte((yy - u*6419>>8 - v*13320>>8 + 8708) >> 6)
			dst[3*x+2] = clampByte((yy + u*33050>>8 - 17685) >> 6)
		}
	}
	return out
}

// webpChroma doubles a chroma row: each output weighs the four samples around
// it by 9, 3, 3 and 1 sixteenths, in the two roundings of libwebp.
func webpChroma(dst, near, far []byte) {
	w := len(dst)
	dst[0] = byte((3*int32(near[0]) + int32(far[0]) + 2) >> 2)
	for x := 1; x <= (w-1)/2; x++ {
		nl, nr, fl, fr := int32(near[x-1]), int32(near[x]), int32(far[x-1]), int32(far[x])
		avg := nl + nr + fl + fr + 8
		dst[2*x-1] = byte(((avg+2*(nr+fl))>>3 + nl) >> 1)
		dst[2*x] = byte(((avg+2*(nl+fr))>>3 + nr) >> 1)
	}
	if w%2 == 0 {
		last := w/2 - 1
		dst[w-1] = byte((3*int32(near[last]) + int32(far[last]) + 2) >> 2)
	}
}
