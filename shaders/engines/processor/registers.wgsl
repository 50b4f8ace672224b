// A thread of engine `processor` keeps RT rows and their sums, whole, in registers. All loops over registers are written out.

alias Rows = array<array<vec4f, WIDTH>, RT>;
alias Sums = array<array<vec4f, WIDTH>, RT>;

var<private> score_rows: Rows;

fn begin_rows(w: Work, visit: Visit, thread: u32) { load_rows(SCORES, &score_rows, w, visit, thread); }

// (The loop over the width stays one: a load takes a compiler longer than the choice of a register.)
fn load_rows(what: u32, rows: ptr<private, Rows>, w: Work, visit: Visit, thread: u32) {
    for (var i = 0u; i < EACH_RT; i++) {
        for (var d = 0u; d < EACH_WIDTH; d++) { (*rows)[i][d] = vec4f(); }
    }
    for (var at = 0u; at < width_of(what); at++) {
        for (var i = 0u; i < EACH_RT; i++) {
            let token = row_token(visit, thread * RT + i);
            let x = select(vec4f(), row_part(what, w, token, at), token != NONE);
            for (var d = 0u; d < EACH_WIDTH; d++) { (*rows)[i][d] = select((*rows)[i][d], x, d == at); }
        }
    }
}

// (A loop over registers that chooses: the caller's loop stays one, because a store takes a compiler long.)
fn register_at(sums: ptr<private, Sums>, i: u32, c: u32) -> vec4f {
    var sum = vec4f();
    for (var d = 0u; d < EACH_WIDTH; d++) { sum = select(sum, (*sums)[i][d], d == c); }
    return sum;
}

// vec4 number d of a column; zero beyond its width, and where there is none.
fn column_part(what: u32, w: Work, token: u32, d: u32) -> vec4f {
    let x = col_part(what, w, token, min(d, width_of(what) - 1u));
    return select(vec4f(), x, token != NONE && d < width_of(what));
}
