package vision

import (
	"bytes"
	"encoding/binary"
)

// Limits of the search for the EXIF orientation.
const (
	maxSegments = 1 << 12 // segments of a JPEG, chunks of a PNG or WebP
	maxTags     = 1024
)

// pngOrientation returns the orientation in the eXIf chunk of a PNG (PNG
// third edition, section 11.3.3.5), else 1.
func pngOrientation(b []byte) int {
	const head, crc = 8, 4
	for i, n := 8, 0; i+head <= len(b) && n < maxSegments; n++ {
		size := int64(binary.BigEndian.Uint32(b[i:]))
		if int64(i)+head+size > int64(len(b)) {
			return 1
		}
		body := b[i+head : i+head+int(size)]
		if string(b[i+4:i+8]) == "eXIf" {
			return tiffOrientation(body)
		}
		i += head + int(size) + crc
	}
	return 1
}

// webpOrientation returns the orientation in the EXIF chunk of a WebP (RFC
// 9649, section 2.7.1.5), else 1.
func webpOrientation(b []byte) int {
	const head = 8
	for i, n := 12, 0; i+head <= len(b) && n < maxSegments; n++ {
		size := int64(binary.LittleEndian.Uint32(b[i+4:]))
		if int64(i)+head+size > int64(len(b)) {
			return 1
		}
		body := b[i+head : i+head+int(size)]
		if string(b[i:i+4]) == "EXIF" {
			return tiffOrientation(bytes.TrimPrefix(body, []byte(exifPrefix)))
		}
		i += head + int(size+size%2)
	}
	return 1
}

// exifPrefix begins the EXIF segment of a JPEG.
const exifPrefix = "Exif\x00\x00"

// jpegOrientation returns the orientation (1 to 8) in the EXIF segment of a
// JPEG (EXIF 2.3, section 4.6; TIFF 6.0), else 1.
func jpegOrientation(b []byte) int {
	for i, n := 2, 0; i+4 <= len(b) && n < maxSegments; n++ {
		if b[i] != 0xff {
			return 1
		}
		marker := b[i+1]
		if marker == 0xff { // fill byte
			i++
			continue
		}
		if marker == 0xda || marker == 0xd9 { // the picture itself, or its end
			return 1
		}
		size := int(binary.BigEndian.Uint16(b[i+2:]))
		if size < 2 || i+2+size > len(b) {
			return 1
		}
		body := b[i+4 : i+2+size]
		if marker == 0xe1 && bytes.HasPrefix(body, []byte(exifPrefix)) {
			return tiffOrientation(body[len(exifPrefix):])
		}
		i += 2 + size
	}
	return 1
}

func tiffOrientation(t []byte) int {
	if len(t) < 8 {
		return 1
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch string(t[:2]) {
	case "II":
	case "MM":
		order = binary.BigEndian
	default:
		return 1
	}
	dir := int64(order.Uint32(t[4:]))
	if order.Uint16(t[2:]) != 42 || dir+2 > int64(len(t)) {
		return 1
	}
	n := int(order.Uint16(t[dir:]))
	for k := range min(n, maxTags) {
		at := dir + 2 + int64(k)*12
		if at+12 > int64(len(t)) {
			return 1
		}
		const orientation, short = 0x0112, 3
		if order.Uint16(t[at:]) == orientation {
			v := int(order.Uint16(t[at+8:]))
			if order.Uint16(t[at+2:]) != short || v < 1 || v > 8 {
				return 1
			}
			return v
		}
	}
	return 1
}

// upright applies an EXIF orientation.
func upright(m *Image, orientation int) *Image {
	if orientation < 2 || orientation > 8 {
		return m
	}
	w, h := m.Width, m.Height
	out := newImage(w, h, m.Channels)
	if orientation >= 5 {
		out.Width, out.Height = h, w
	}
	n := m.Channels
	for y := range out.Height {
		for x := range out.Width {
			sx, sy := x, y
			switch orientation {
			case 2: // mirrored
				sx = w - 1 - x
			case 3: // upside down
				sx, sy = w-1-x, h-1-y
			case 4: // mirrored upside down
				sy = h - 1 - y
			case 5: // transposed
				sx, sy = y, x
			case 6: // to be turned clockwise
				sx, sy = y, h-1-x
			case 7: // transversed
				sx, sy = w-1-y, h-1-x
			case 8: // to be turned counter-clockwise
				sx, sy = w-1-y, x
			}
			copy(out.Pix[(y*out.Width+x)*n:][:n], m.Pix[(sy*w+sx)*n:][:n])
		}
	}
	return out
}
