// What the threads of a row know of it together, in engine `portable`.

// Combines row_value over the TC threads of each row group: their sum, or their maximum. Each gets the result back.
fn reduce_rows(sum: bool, thread: u32) {
    let tc = thread % TC;
    let quad0 = (thread / TC) * (RT / 4u);
    for (var e = 0u; e < EVERY_RT / 4u; e++) {
        tile_data[tc * (BR / 4u) + quad0 + e] = vec4f(row_value[4u * e], row_value[4u * e + 1u], row_value[4u * e + 2u], row_value[4u * e + 3u]);
    }
    workgroupBarrier();
    if (thread < BR / 4u) {
        var x = tile_data[thread];
        for (var c = 1u; c < TC; c++) {
            let y = tile_data[c * (BR / 4u) + thread];
            x = select(max(x, y), x + y, sum);
        }
        tile_data[TC * (BR / 4u) + thread] = x;
    }
    workgroupBarrier();
    for (var e = 0u; e < EVERY_RT / 4u; e++) {
        let x = tile_data[TC * (BR / 4u) + quad0 + e];
        for (var i = 0u; i < 4u; i++) { row_value[4u * e + i] = x[i]; }
    }
    workgroupBarrier();
}
