// A thread of engine `processor` has whole rows: row_value is complete.

fn reduce_rows(sum: bool, thread: u32) {}
