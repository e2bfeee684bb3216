//! What the others must not harm: some requests, each with an answer.

fn main() {
    let answered = (0..3).filter(|_| guests::get("good.example").send().is_ok_and(|answer| answer.body == "hello"));
    println!("{} answers", answered.count());
}
