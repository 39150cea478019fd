//! Prints the upcall story on the silicon model, one record a row, as the bare-metal image does.

fn main() {
    for row in vlapic_tests::demo::upcall_story() {
        println!("{row}");
    }
}
