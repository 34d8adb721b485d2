/* Decodes a window of a JPEG with libjpeg-turbo, and spends nothing on what lies outside it.

   Rows above the window are entropy-decoded only, rows below it not at all, and of the rest just the columns of the
   window become pixels. A random resized crop keeps half of an image on average. Pixels inside are those of a decoder
   of the whole image, bit by bit, with libjpeg's accurate transform: the ones that Pillow and torchvision give.

   Not a Python module, though built and found as one: a numba kernel calls it by its address. */

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jpeglib.h>

#define MARGIN 16 /* pixels: smoothed colours at the window's edges come from one block further out */
#define ROWS 16

struct errors {
    struct jpeg_error_mgr manager;
    jmp_buf on_error;
};

static void leave(j_common_ptr info) { longjmp(((struct errors *)info->err)->on_error, 1); }

static void count_warning(j_common_ptr info, int level) {
    if (level < 0) info->err->num_warnings++;
}

/* 0 if rows top..top+rows-1, columns left..left+columns-1 of `image` hold the window; 1 if the data is damaged.

   image: uint8[height, width, 3], RGB; a margin left and right of the window is written as well, and nothing else.
   The window must lie within height x width, which must be the size that the JPEG has. */
int32_t decode_window(const uint8_t *data, uint64_t size, int32_t height, int32_t width, uint8_t *image, int32_t top,
                      int32_t left, int32_t rows, int32_t columns) {
    struct jpeg_decompress_struct info;
    struct errors errors;
    info.err = jpeg_std_error(&errors.manager);
    errors.manager.error_exit = leave;
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
            lines[i] = image + ((size_t)(info.output_scanline + i) * width + first) * 3;
        jpeg_read_scanlines(&info, lines, wanted);
    }
    int32_t damaged = info.err->num_warnings != 0;
    jpeg_destroy_decompress(&info); /* also in the middle of an image: what follows the window is not read */
    return damaged;
}
