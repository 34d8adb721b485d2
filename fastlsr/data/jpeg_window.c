/* Decodes a window of a JPEG with libjpeg-turbo, at next to no cost for what lies outside it.

   A random resized crop keeps half of an image on average. Our writer sets restart markers that cut every row of MCUs
   (mostly 16 x 16 pixels) into the same segments: those that the window touches are joined into a smaller JPEG, and the
   others are never decoded. Without such markers, rows above the window are only entropy-decoded, rows below it are not
   read, and of the rows between just the window's columns become pixels. Either way the pixels of the window equal, bit
   by bit, those of decoding the whole image with libjpeg's accurate transform, as Pillow and torchvision do.

   Not a Python module, though built and found as one: a numba kernel calls it by its address. */

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#define MARGIN 16 /* pixels: colours are interpolated, so the window's edges need the next block */
#define ROWS 16
#define TAIL 4096 /* bytes: libjpeg-turbo is slower where it sees the end of its data coming */

enum { RST0 = 0xD0, EOI = 0xD9, SOS = 0xDA, DRI = 0xDD, DHT = 0xC4, SOF0 = 0xC0, SOF15 = 0xCF };

struct errors {
    struct jpeg_error_mgr manager;
    jmp_buf on_error;
};

static void stop_decoding(j_common_ptr info) { longjmp(((struct errors *)info->err)->on_error, 1); }

static void count_warning(j_common_ptr info, int level) {
    if (level < 0) info->err->num_warnings++;
}

/* How restart markers cut a JPEG into segments that can be decoded alone, each one MCU high. */
struct grid {
    size_t sides;          /* where the image's height and width are stored */
    size_t start;          /* where the first segment begins */
    int32_t rows, columns; /* of segments */
    int32_t height, width; /* of a segment, in pixels */
};

static int32_t number(const uint8_t *bytes) { return bytes[0] << 8 | bytes[1]; }

static int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

/* Returns 1 and fills `grid` if the JPEG has this size, is baseline, in three colours and cut into a grid; else 0. */
static int find_grid(const uint8_t *data, size_t size, int32_t height, int32_t width, struct grid *grid) {
    int32_t interval = 0, across = 0, down = 0;
    grid->sides = 0;
    for (size_t at = 2; at + 4 <= size && data[at] == 0xFF; at += 2 + number(data + at + 2)) {
        const uint8_t *body = data + at + 4;
        int32_t marker = data[at + 1], length = number(data + at + 2) - 2;
        if (length < 1 || at + 4 + length > size) return 0;
        if (marker == SOF0) {
            if (length != 15 || number(body + 1) != height || number(body + 3) != width || body[5] != 3) return 0;
            for (int i = 0; i < 3; i++) { /* the colours' sampling factors: their largest are the MCU's */
                int32_t h = body[7 + 3 * i] >> 4, v = body[7 + 3 * i] & 15;
                across = h > across ? h : across;
                down = v > down ? v : down;
            }
            grid->sides = at + 5;
        } else if (marker > SOF0 && marker <= SOF15 && marker != DHT) {
            return 0;
        } else if (marker == DRI && length == 2) {
            interval = number(body);
        } else if (marker == SOS) {
            if (!interval || !across || !down || body[0] != 3) return 0;
            int32_t units = ceil_div(width, 8 * across); /* MCUs in a row */
            if (units % interval) return 0;
            grid->start = at + 4 + length;
            grid->height = 8 * down;
            grid->width = 8 * across * interval;
            grid->rows = ceil_div(height, grid->height);
            grid->columns = units / interval;
            return 1;
        }
    }
    return 0;
}

/* Returns the position of the marker that closes the segment beginning at `at`; `size` if there is none. */
static size_t end_of_segment(const uint8_t *data, size_t size, size_t at) {
    while (at + 1 < size) {
        const uint8_t *found = memchr(data + at, 0xFF, size - 1 - at);
        if (!found) return size;
        at = found - data;
        if (data[at + 1]) return at;
        at += 2;
    }
    return size;
}

/* A JPEG made of the segments of another that hold a window and the margin around it. */
struct part {
    uint8_t *data; /* to be freed */
    size_t size;
    int32_t top, left, height, width; /* of the rectangle in the image */
};

/* Makes `out` and returns 1; returns 0 without a grid, or where `out` would save nothing. */
static int cut(const uint8_t *data, size_t size, int32_t height, int32_t width, int32_t top, int32_t left,
               int32_t rows, int32_t columns, struct part *out) {
    struct grid grid;
    if (!find_grid(data, size, height, width, &grid)) return 0;
    int32_t first_row = (top > MARGIN ? top - MARGIN : 0) / grid.height;
    int32_t first_column = (left > MARGIN ? left - MARGIN : 0) / grid.width;
    int32_t end_row = ceil_div(top + rows + MARGIN, grid.height);
    int32_t end_column = ceil_div(left + columns + MARGIN, grid.width);
    if (end_row > grid.rows) end_row = grid.rows;
    if (end_column > grid.columns) end_column = grid.columns;
    if (!first_row && !first_column && end_column == grid.columns) return 0;

    out->top = first_row * grid.height;
    out->left = first_column * grid.width;
    out->height = end_row == grid.rows ? height - out->top : (end_row - first_row) * grid.height;
    out->width = end_column == grid.columns ? width - out->left : (end_column - first_column) * grid.width;
    out->data = malloc(size + TAIL);
    if (!out->data) return 0;
    memcpy(out->data, data, grid.start);
    uint8_t *sides = out->data + grid.sides;
    sides[0] = out->height >> 8, sides[1] = out->height & 255;
    sides[2] = out->width >> 8, sides[3] = out->width & 255;

    size_t at = grid.start, to = grid.start;
    int32_t kept = 0, last = grid.rows * grid.columns - 1;
    for (int32_t i = 0; i < end_row * grid.columns; i++) {
        size_t end = end_of_segment(data, size, at);
        if (end == size || data[end + 1] != (i == last ? EOI : RST0 + i % 8)) {
            free(out->data);
            return 0; /* damaged: decoding the whole will show it */
        }
        int32_t row = i / grid.columns, column = i % grid.columns;
        if (row >= first_row && column >= first_column && column < end_column) {
            memcpy(out->data + to, data + at, end + 1 - at);
            to += end + 1 - at;
            out->data[to++] = RST0 + kept++ % 8;
        }
        at = end + 2;
    }
    out->data[to - 1] = EOI;
    memset(out->data + to, 0, TAIL);
    out->size = to + TAIL;
    return 1;
}

/* Decodes the window of a JPEG of height x width pixels; returns 0, or 1 if the JPEG is damaged.

   image: where the JPEG's first pixel belongs, RGB, in an image whose lines are `stride` bytes long. */
static int32_t decode(const uint8_t *data, uint64_t size, int32_t height, int32_t width, uint8_t *image, size_t stride,
                      int32_t top, int32_t left, int32_t rows, int32_t columns) {
    struct jpeg_decompress_struct info;
    struct errors errors;
    info.err = jpeg_std_error(&errors.manager);
    errors.manager.error_exit = stop_decoding;
    errors.manager.emit_message = count_warning;
    if (setjmp(errors.on_error)) {
        jpeg_destroy_decompress(&info);
        return 1;
    }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, (unsigned char *)data, size);
    jpeg_read_header(&info, TRUE);
    if (info.image_height != (JDIMENSION)height || info.image_width != (JDIMENSION)width) {
        jpeg_destroy_decompress(&info);
        return 1;
    }
    info.out_color_space = JCS_RGB;
    jpeg_start_decompress(&info);

    JDIMENSION first = left > MARGIN ? left - MARGIN : 0;
    JDIMENSION last = left + columns + MARGIN < width ? left + columns + MARGIN : width;
    JDIMENSION count = last - first;
    if (count < (JDIMENSION)width) jpeg_crop_scanline(&info, &first, &count);
    if (top) jpeg_skip_scanlines(&info, top);
    JDIMENSION end = top + rows;
    while (info.output_scanline < end) {
        JSAMPROW lines[ROWS];
        JDIMENSION wanted = end - info.output_scanline < ROWS ? end - info.output_scanline : ROWS;
        for (JDIMENSION i = 0; i < wanted; i++)
            lines[i] = image + (info.output_scanline + i) * stride + (size_t)first * 3;
        jpeg_read_scanlines(&info, lines, wanted);
    }
    int32_t damaged = info.err->num_warnings != 0;
    jpeg_destroy_decompress(&info); /* in the middle of the image: what follows the window is not read */
    return damaged;
}

/* Decodes rows top..top+rows-1, columns left..left+columns-1 of a JPEG into `image`; returns 0, or 1 if it is damaged.

   image: uint8[height, width, 3], RGB; only the window and a margin left and right of it are written.
   The window must lie within height x width. A JPEG of another size counts as damaged. */
int32_t decode_window(const uint8_t *data, uint64_t size, int32_t height, int32_t width, uint8_t *image, int32_t top,
                      int32_t left, int32_t rows, int32_t columns) {
    size_t stride = (size_t)width * 3;
    struct part part;
    if (!cut(data, size, height, width, top, left, rows, columns, &part))
        return decode(data, size, height, width, image, stride, top, left, rows, columns);
    uint8_t *origin = image + part.top * stride + (size_t)part.left * 3;
    int32_t damaged = decode(part.data, part.size, part.height, part.width, origin, stride, top - part.top,
                             left - part.left, rows, columns);
    free(part.data);
    return damaged;
}
