//! temporary
use std::sync::Arc;
use content::*;
#[tokio::main]
async fn main() {
    let a: Vec<String> = std::env::args().collect();
    let store = Store::open_or_create(&a[2].parse().unwrap(), "b").await.unwrap();
    match a[1].as_str() {
        "put" => println!("{:?}", store.put_raw(a[3].as_ref(), "b", |_| {}).await.unwrap()),
        "commit" => println!("{:?}", store.commit_overlay(&a[3].parse().unwrap(), &[a[4].clone().into()], "b", |_| {}).await.unwrap()),
        "replicate" => { let to = Store::open_or_create(&a[4].parse().unwrap(), "b").await.unwrap();
            println!("{:?}", replicate(&store, &to, &a[3].parse().unwrap(), "b", |_| {}).await.unwrap()) }
        "verify" => { let t = std::time::Instant::now(); println!("{:?} {:?}", store.verify(&a[3].parse().unwrap()).await.unwrap(), t.elapsed()) }
        "serve" => {
            let cache = Arc::new(BlockCache::open(a[4].as_ref(), 4 << 30).unwrap());
            let t = std::time::Instant::now();
            let image = store.open_image(&a[3].parse().unwrap(), cache).await.unwrap();
            println!("opened {:?}", t.elapsed());
            nbd::serve(image, a[5].as_ref(), Default::default()).await.unwrap();
        }
        _ => panic!(),
    }
    let rss = std::fs::read_to_string("/proc/self/status").unwrap();
    for l in rss.lines().filter(|l| l.starts_with("VmHWM") || l.starts_with("RssAnon")) { println!("{l}"); }
}
